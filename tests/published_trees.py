"""Tiny trees of the sets people quote, laid out as their authors publish them, of any small size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.io import savemat

from facerec.making.pair_lists import lfw_image
from tests.making import image

NAMES = ("Ann_Bee", "Cid", "Dan_Fox")
# Of each fold, the genuine pairs, then the impostor pairs, as (name, number, name, number).
FOLD = [
    ("Ann_Bee", 1, "Ann_Bee", 2),
    ("Cid", 2, "Cid", 1),
    ("Ann_Bee", 1, "Dan_Fox", 1),
    ("Cid", 1, "Ann_Bee", 2),
]
FOLDS = [FOLD[:2][:: (1, -1)[k % 2]] + FOLD[2:][:: (1, -1)[k % 3 == 0]] for k in range(10)]

Path_of = Callable[[str, int], str]


def write(root: Path, path: str, content: bytes | str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def write_images(root: Path, path_of: Path_of, seed: int = 0) -> None:
    for number, name in enumerate(NAMES):
        for i in (1, 2):
            write(root, path_of(name, i), image(seed + 10 * number + i))


def pairs_txt(first: str = "") -> str:
    lines = [f"{a}\t{i}\t{j}" if a == b else f"{a}\t{i}\t{b}\t{j}" for fold in FOLDS for a, i, b, j in fold]
    return first + "\n".join(lines) + "\n"


def cfp(root: Path) -> None:
    """Frontal images 1 and 2, profile images 1 and 2 of each; lines 2·k + i of both lists."""
    for view, long in (("F", "frontal"), ("P", "profile")):
        lines = []
        for k in range(len(NAMES)):
            for i in (1, 2):
                path = f"Data/Images/{k + 1:03}/{long}/{i:02}.jpg"
                write(root, path, image(10 * k + i + (view == "P") * 100))
                lines.append(f"{2 * k + i} ../{path}\n")
        write(root, f"Protocol/Pair_list_{view}.txt", "".join(lines))
        for number, fold in enumerate(FOLDS, 1):
            for answer in ("same", "diff"):
                chosen = [pair for pair in fold if (pair[0] == pair[2]) == (answer == "same")]
                text = [f"{line_of(a, i)},{line_of(b, j)}\n" for a, i, b, j in chosen]
                write(root, f"Protocol/Split/F{view}/{number:02}/{answer}.txt", "".join(text))


def line_of(name: str, i: int) -> int:
    return 2 * NAMES.index(name) + i


def cfp_path(view: str) -> Path_of:
    return lambda name, i: f"Data/Images/{NAMES.index(name) + 1:03}/{view}/{i:02}.jpg"


def cells(shape: tuple[int, ...], items: list[object]) -> np.ndarray:
    made = np.empty(shape, object)
    made.flat = items
    return made


def agedb_path(name: str, i: int) -> str:
    return f"03_Protocol_Images/{10 * NAMES.index(name) + i}_{name.replace('_', '')}_{30 * i}_f.jpg"


def agedb(root: Path) -> None:
    write_images(root, agedb_path)
    splits = []
    for fold in FOLDS:
        rows = [[(a, i) for a, i, _, _ in fold], [(b, j) for _, _, b, j in fold]]
        structs = [{"name": Path(agedb_path(*one)).stem, "age": 30.0 * one[1]} for row in rows for one in row]
        answers = np.array([[1 if a == b else -1 for a, _, b, _ in fold]], np.float64)
        splits.append({"pairs": cells((2, len(fold)), structs), "labels": answers})
    savemat(root / "04_FINAL_protocol_30_years.mat", {"splits": cells((10, 1), splits)})


def flat_path(digits: int) -> Path_of:
    return lambda name, i: f"aligned images/{name}_{i:0{digits}}.jpg"


def _two_lines(root: Path, set_name: str, digits: int, folds: bool) -> None:
    path_of = flat_path(digits)
    write_images(root, path_of)
    listed = [(pair, k + 1 if folds else 1) for k, fold in enumerate(FOLDS) for pair in fold[:2]]
    listed += [(pair, 0) for fold in FOLDS for pair in fold[2:]]
    lines = []
    for (a, i, b, j), answer in listed:
        lines += [f"{Path(path_of(name, at)).name} {answer}\n" for name, at in ((a, i), (b, j))]
    write(root, f"pairs_{set_name.upper()}.txt", "".join(lines))


def calfw(root: Path) -> None:
    _two_lines(root, "calfw", 4, folds=True)


def cplfw(root: Path) -> None:
    _two_lines(root, "cplfw", 1, folds=False)


def xqlfw(root: Path) -> None:
    write_images(root / "xqlfw_aligned_112", lfw_image)
    write(root, "xqlfw_pairs.txt", pairs_txt("10\t2\n"))


def rfw(root: Path) -> None:
    for seed, group in enumerate(("African", "Asian", "Caucasian", "Indian")):
        write_images(root / "data" / group, lfw_image, 100 * seed)
        write(root, f"txts/{group}/{group}_pairs.txt", pairs_txt())


def tinyface(root: Path) -> None:
    """Two images of each in the gallery, one as a probe, and three distractors."""
    for file, kind, folder, numbers in (
        ("gallery_match_img_ID_pairs.mat", "gallery", "Gallery_Match", (1, 2)),
        ("probe_img_ID_pairs.mat", "probe", "Probe", (3,)),
    ):
        listed = [(f"{k + 7}_{i}.jpg", k + 7) for k in range(len(NAMES)) for i in numbers]
        for name, number in listed:
            write(root, f"{folder}/{name}", image(10 * number + int(name[2])))
        names = cells((len(listed), 1), [name for name, _ in listed])
        ids = np.array([[number] for _, number in listed], np.uint16)
        savemat(root / file, {f"{kind}_set": names, f"{kind}_ids": ids})
    for i in range(3):
        write(root, f"Gallery_Distractor/d{i}.jpg", image(500 + i))


TREES = {one.__name__: one for one in (agedb, calfw, cfp, cplfw, rfw, tinyface, xqlfw)}
