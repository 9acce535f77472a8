"""Train heads on clean and on wrong labels over several seeds; print accuracy as mean and deviation.

Every run is a `facerec-train` in a folder of its own. Runs that have ended are not repeated, so an
interrupted experiment goes on where it was. The identities evaluated on are never among those trained on.
"""

import argparse
import json
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path

# One set of parameters for all noise and seeds. The scale suits 30 identities, the momentum 150 steps.
HEADS = {
    "softmax": ["head=softmax"],
    "arcface": ["head=arcface", "head.s=32", "head.m=0.3"],
    "sface": ["head=sface", "head.s=32"],
    "sface_quality": ["head=sface_quality", "head.s=32", "head.ema=0.1"],
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="experiment_noise", description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="orl_noise", help="configs/experiment/NAME.yaml; orl_noise")
    parser.add_argument("--heads", default=",".join(HEADS), help="with commas; all four")
    parser.add_argument("--noise", default="0,0.3", help="fractions of wrong labels, with commas; 0,0.3")
    parser.add_argument("--kind", default="uniform", choices=("uniform", "confusable"))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 … n−1; 3")
    parser.add_argument("--out", type=Path, default=Path("runs/noise"), metavar="DIR")
    parser.add_argument("further", nargs="*", help="settings of facerec-train")
    options = parser.parse_args()
    heads, fractions = options.heads.split(","), options.noise.split(",")
    scores: dict[tuple[str, str], list[dict[str, float]]] = {}
    for head, fraction, seed in product(heads, fractions, range(options.seeds)):
        kind = f"_{options.kind}" if float(fraction) else ""
        folder = options.out / f"{head}_{fraction}{kind}_{seed}"
        if not (folder / "results.json").is_file():
            run(folder, options, [*HEADS[head], f"data.label_noise={fraction}", f"seed={seed}"])
        targets = json.loads((folder / "results.json").read_text())["targets"]
        scores.setdefault((head, fraction), []).append(targets)
        print(f"{folder.name}: " + ", ".join(f"{k} {v['accuracy']:.4f}" for k, v in targets.items()))
    print(table(scores, heads, fractions, options.kind))
    return 0


def run(folder: Path, options: argparse.Namespace, settings: list[str]) -> None:
    """Train once, in a process of its own; the output goes to the train.log of its folder."""
    command = [
        *(sys.executable, "-c", "from facerec.cli.train import main; main()"),
        *(f"experiment={options.experiment}", f"output_dir={folder}", f"data.noise_kind={options.kind}"),
        *settings,
        *options.further,
    ]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise SystemExit(f"experiment_noise: {folder}: {said[-1]}")


def table(scores: dict, heads: list[str], fractions: list[str], kind: str) -> str:
    """Return a row per head, a column per fraction and measure: mean ± deviation over seeds, in percent."""
    columns = [(fraction, measure) for fraction in fractions for measure in ("accuracy", "auc")]
    titles = [
        f"{100 * float(fraction):g} % {kind if float(fraction) else 'clean'}, {m}" for fraction, m in columns
    ]
    lines = ["", f"{'head':14}" + "".join(f"{title:>26}" for title in titles)]
    for head in heads:
        cells = []
        for fraction, measure in columns:
            values = [
                100 * statistics.mean(target[measure] for target in targets.values())
                for targets in scores[head, fraction]
            ]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.2f} ± {deviation:.2f}")
        lines.append(f"{head:14}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
