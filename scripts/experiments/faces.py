"""Train on LFW and CFP: five heads from scratch, fine-tuning, distillation; print how they do on others.

Every run is a command of facerec in a folder of its own, the first seed of all before the second; at the end
facerec-sweep compares them in OUT/runs/sweep.html. Runs that have ended are not repeated, so an interrupted
experiment goes on where it was. No identity of folds 9 and 10 of CFP and of set 10 of LFW is trained on.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

from scipy.stats import t, ttest_1samp

import facerec
from facerec.evaluation.statistics.comparison import holm
from facerec.making.published_sets import LAYOUTS

# One set of parameters for all seeds, chosen beforehand; small margins, as 32 pixels and few images are hard.
HEADS = {
    "softmax": ["head=softmax"],
    "cosface": ["head=cosface", "head.s=32", "head.m=0.1"],
    "arcface": ["head=arcface", "head.s=32", "head.m=0.2"],
    "sface": ["head=sface", "head.s=32"],
    "adaface": ["head=adaface", "head.s=32", "head.m=0.2"],
}
TUNED = {
    "tuned": [],
    "tuned_pull": ["teacher.embeddings={embeddings}", "teacher.cosine=5"],
    "tuned_slow": ["backbone.lr_scale=0.1"],
}
NETWORK = ["backbone=mobilefacenet", "backbone.embedding_size=128"]
JUDGED = ["eval.flip=false", "eval.figures=false", "eval.bootstrap=0"]
TRAINING = ["data=folder", "schedule=cosine", "schedule.warmup=0.3", "trainer.batch_size=32"]
TRAINING += ["trainer.epochs=1000", "logger=[metrics,results]", "eval.every_steps=1000000", *JUDGED]


def main() -> int:
    parser = argparse.ArgumentParser(prog="experiment_faces", description=__doc__.splitlines()[0])
    parser.add_argument("--cfp", type=Path, required=True, help="the folder of CFP, aligned")
    parser.add_argument("--lfw", type=Path, required=True, help="the folder of train.rec and lfw_set10.bin")
    parser.add_argument("--weights", type=Path, required=True, help="a published model: tuned, and a teacher")
    parser.add_argument("--out", type=Path, default=Path("runs/faces"), metavar="DIR")
    parser.add_argument("--size", type=int, default=32, help="pixels for training from scratch; 32")
    parser.add_argument("--steps", default="360,48", help="from scratch, and of fine-tuning; 360,48")
    parser.add_argument("--min-images", type=int, default=5, help="of an identity of LFW to train on; 5")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 … n−1; 3")
    parser.add_argument("--tuned-seeds", type=int, default=1, help="of fine-tuning; 1")
    parser.add_argument("further", nargs="*", help="settings of facerec-train")
    options = parser.parse_args()
    for path in (options.cfp / "Protocol", options.lfw / "train.rec", options.weights):
        if not path.exists():
            parser.error(f"{path}: no such file or folder")
    out, embeddings = options.out, options.out / "teacher.npy"
    steps, tuned_steps = (f"trainer.max_steps={steps}" for steps in options.steps.split(","))
    prepare(options.cfp, options.lfw, out, options.min_images)
    sets = f"{out}/cfp_fp.bin,{options.lfw}/lfw_set10.bin"
    scratch = [*TRAINING, *NETWORK, f"data.size={options.size}", "optimizer.lr=0.05", steps]
    scratch += [f"data.root={out}/both", f"eval.targets=[{out}/cfp_ff.bin,{sets}]", *options.further]
    tuning = [*TRAINING, *published(options.weights), tuned_steps]
    tuning += [f"data.root={out}/few", f"eval.targets=[{sets}]", *options.further]
    rows: dict[str, list[dict]] = {}

    def run(name: str, seed: int, program: str, *settings: str) -> None:
        """Run a command once, unless that is done, and keep all results so far in OUT/results.json."""
        folder = out / "runs" / f"{name}_{seed}"
        if not (folder / "results.json").is_file():
            command(program, *settings, f"output_dir={folder}")
        rows.setdefault(name, []).append(json.loads((folder / "results.json").read_text())["targets"])
        (out / "results.json").write_text(json.dumps(rows, indent=1))
        values = ", ".join(f"{target} {one['auc']:.4f}" for target, one in rows[name][-1].items())
        print(f"{folder.name}: {values}", flush=True)

    for seed in range(options.seeds):
        for head, settings in HEADS.items():
            run(head, seed, "train", *scratch, *settings, f"seed={seed}")
        if not embeddings.is_file():
            command("embed", f"{out}/both", str(embeddings), "--ckpt", str(options.weights), "--no-flip")
        if seed == 0:
            run("published", 0, "evaluate", f"ckpt={options.weights}", f"eval.targets=[{sets}]", *JUDGED)
        for name, settings in TUNED.items() if seed < options.tuned_seeds else ():
            given = [one.format(embeddings=embeddings) for one in settings]
            run(name, seed, "train", *tuning, *given, f"seed={seed}")
        learning = [*HEADS["softmax"], f"teacher.embeddings={embeddings}", "teacher.cosine=20"]
        run("student", seed, "train", *scratch, *learning, f"seed={seed}")
    command("sweep", str(out / "runs"), "--by", "auc")
    print(differences(rows))
    return 0


def published(weights: Path) -> list[str]:
    """Settings to train on from a model: its network, its preprocessing, class rows from its embeddings."""
    model = facerec.load_model(weights, device="cpu")
    network, input = model.config["backbone"], asdict(model.input)
    settings = [f"backbone={network['name']}", f"backbone.embedding_size={network['embedding_size']}"]
    settings += [f"data.size={input.pop('size')}", *(f"input.{key}={value}" for key, value in input.items())]
    settings += [f"backbone.pretrained={weights}", "backbone.freeze_batch_norm=true", "head.init=class_means"]
    return [*settings, *HEADS["cosface"], "optimizer.lr=0.01"]


def prepare(cfp: Path, lfw: Path, out: Path, least: int) -> None:
    """Write the folders to train on and the pairs to evaluate on.

    ``both`` holds CFP's identities of folds 1 to 8 and LFW's of at least so many images, ``few`` four images
    (two in profile) of each of CFP's, ``held`` CFP's other identities; the pairs are those of folds 9 and 10.
    """
    pairs = {
        name: [f"{placed(Path(a))},{placed(Path(b))},{int(same)}\n" for a, b, same in listed.pairs[-1400:]]
        for name, listed in LAYOUTS["cfp"].read(cfp, cfp / "Data/Images").items()
    }
    held = {
        name.partition("/")[0] for both in pairs.values() for line in both for name in line.split(",")[:2]
    }
    if not (out / "held").is_dir():
        if not (out / "lfw").is_dir():
            command("data", "unpack", str(lfw), str(out / "lfw"))
        for identity in (out / "lfw").iterdir():
            if len([*identity.iterdir()]) >= least:
                shutil.copytree(identity, out / "both" / identity.name, dirs_exist_ok=True)
        for image in sorted((cfp / "Data/Images").glob("*/*/*.jpg")):
            few = ["few"] if image.name in ("01.jpg", "02.jpg") else []
            for part in ["held.part"] if image.parts[-3] in held else ["both", *few]:
                target = out / part / placed(image)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(image, target)
        (out / "held.part").rename(out / "held")
    for name, lines in pairs.items():
        listing = (out / name).with_suffix(".csv")
        listing.write_text("".join(lines))
        if not (out / name).is_file():
            written = ["--csv", str(listing), "--keep", "--keep-order", "--folds", "2"]
            command("data", "pairs", str(out / "held"), str(out / name), *written)


def placed(image: Path) -> str:
    """Where an image of CFP goes: ``401/frontal/07.jpg`` becomes ``401/frontal_07.jpg``."""
    return f"{image.parts[-3]}/{image.parts[-2]}_{image.name}"


def command(program: str, *arguments: str) -> None:
    """Run a command of facerec in a process of its own; it leaves its own records."""
    code = f"from facerec.cli.{program} import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
    if done.returncode:
        said = f"{program} {' '.join(arguments)}: ended with status {done.returncode}"
        raise SystemExit(f"experiment_faces: {said}")


def cell(values: list[float]) -> str:
    """``82.41 (80.10–84.72)``: Student's interval for the mean over seeds."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.2f} ({mean - half:.2f}–{mean + half:.2f})"


def differences(rows: dict[str, list[dict]]) -> str:
    """Return what each two kinds of run from scratch differ by in AUC, seed by seed: paired t-tests."""
    lines, kinds = [], [name for name in (*HEADS, "student") if len(rows.get(name, ())) > 1]
    for target in rows["softmax"][0]:
        found = []
        for one, other in combinations(kinds, 2):
            both = zip(rows[one], rows[other], strict=False)  # an interrupted experiment has some seeds less
            values = [100 * (first[target]["auc"] - second[target]["auc"]) for first, second in both]
            p = float(ttest_1samp(values, 0).pvalue)
            found.append((f"{one} − {other}", cell(values), p))
        corrected = holm([p for *_, p in found])
        for (name, value, p), p_holm in zip(found, corrected, strict=True):
            lines.append(f"{target:10} {name:22}{value:>26}  p {p:.4f}, Holm {p_holm:.4f}")
    return "\n".join(["", "difference of AUC, percent", *lines])


if __name__ == "__main__":
    sys.exit(main())
