"""Give images of a pack wrong labels, let `facerec-data clean` look for them, and print what it finds.

The corrupted pack lies in OUT/corrupted afterwards, what was found in OUT/clean.
"""

import argparse
import csv
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from facerec.loading.noise import with_label_noise
from facerec.making.rewriting import relabel
from facerec.packs.pack import Pack, open_pack

SIZES = ((1, 2), (3, 3), (4, 5), (6, 10), (11, 30), (31, 10**9))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="experiment_cleaning", description=__doc__.splitlines()[0], epilog="Other options go to clean."
    )
    parser.add_argument(
        "pack", type=Path, help="whose images are called like their identity: NAME/NAME_0001.jpg"
    )
    parser.add_argument("--noise", type=float, default=0.2, help="fraction of wrong labels; 0.2")
    parser.add_argument("--kind", default="uniform", choices=("uniform", "confusable"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ckpt", help="the model; without it the corrupted pack is written alone, to train on"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/cleaning"), metavar="DIR")
    options, further = parser.parse_known_args()
    corrupted = options.out / "corrupted"
    if not (corrupted / "train.rec").is_file():
        faces = open_pack(options.pack)
        noisy = with_label_noise(faces, options.noise, options.kind, options.seed)
        names = {c: faces.label(int(i)) for c, i in enumerate(faces.first_images())}
        print(relabel(faces, corrupted, noisy.label_N, names, ()))
    if options.ckpt is None:
        return 0
    command = [
        "clean",
        str(corrupted),
        str(options.out / "clean"),
        "--ckpt",
        options.ckpt,
        "--force",
        *further,
    ]
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "from facerec.cli.data import main; main()", *command], check=True)
    print(f"{time.monotonic() - begin:.0f} s")
    print(table(open_pack(corrupted), options.out / "clean" / "decisions.csv"))
    return 0


def table(pack: Pack, decisions: Path) -> str:
    """Return precision and recall of the images proposed to be dropped or split off, by size of identity."""
    with decisions.open(newline="", encoding="utf-8") as file:
        proposed = {row["image"] for row in csv.DictReader(file) if row["kind"] in ("outlier", "mixed")}
    many = Counter(pack.label(i) for i in range(len(pack)))
    rows = [(pack.name(i), many[pack.label(i)]) for i in range(len(pack))]
    lines = ["images of the identity   images    wrong    found    right among found    precision   recall"]
    for low, high in (*SIZES, (3, 10**9), (1, 10**9)):
        of_size = [name for name, count in rows if low <= count <= high]
        wrong = {name for name in of_size if is_wrong(name)}
        found = proposed.intersection(of_size)
        right = len(found - wrong)
        precision = f"{1 - right / len(found):.3f}" if found else "–"
        recall = f"{len(found & wrong) / len(wrong):.3f}" if wrong else "–"
        size = f"{low} to {high}" if high < 10**9 else f"{low} and more"
        lines.append(
            f"{size:<22}{len(of_size):>9}{len(wrong):>9}{len(found):>9}{right:>21}{precision:>13}{recall:>9}"
        )
    return "\n".join(lines)


def is_wrong(name: str) -> bool:
    """Return True for an image that lies with another identity than that of its own name."""
    identity, _, file = name.rpartition("/")
    return file.rpartition("_")[0] != identity


if __name__ == "__main__":
    sys.exit(main())
