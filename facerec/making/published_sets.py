"""The sets people quote, from the trees their authors publish: `LAYOUTS` says what each looks like.

A layout names the folder of the images and the lists of a set, and reads the lists: into the pairs of one or
more `.bin` files, or into the images of folders for identification.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError, UserError, counted
from facerec.files import publish, refuse_overwriting, staging, storing
from facerec.images.face_maker import FaceMaker
from facerec.loading.folders import images_below
from facerec.making.pair_lists import Folds, Pair, read_pairs_txt
from facerec.making.verification_sets import faces_of, folder_of, write_listed
from facerec.packs.text import is_number, numbered_lines, wrong_line

_FOLDS: Final = 10


class Member(NamedTuple):
    """An image of a gallery, of probes or of distractors; a distractor has no identity."""

    path: str
    identity: str = ""


Listed: TypeAlias = Mapping[str, Folds | list[Member]]


class Layout(NamedTuple):
    """What a set looks like as its authors publish it.

    Attributes:
        images: the folder of the images below the root, the usual one first.
        below: folders that it must hold.
        lists: the files of its protocol.
        read: reads them, given the root and the folder of the images, whose paths are relative to that; the
            keys are what is made: the name of a `.bin`, or of a folder.
        identity: the identity of an image by its path.
    """

    images: tuple[str, ...]
    lists: tuple[str, ...]
    read: Callable[[Path, Path], Listed]
    identity: Callable[[str], str] = folder_of
    below: tuple[str, ...] = ()


def make_published(
    name: str,
    root: Path,
    out: Path,
    maker: FaceMaker,
    *,
    images: Path | None = None,
    force: bool = False,
    workers: int = 1,
) -> list[Path]:
    """Make what `LAYOUTS` says of the set `name` in the folder `out`, from its tree at `root`.

    Args:
        images: where its images are, in the same tree below it, such as aligned copies of them; None: where
            the layout has them.

    Returns:
        The paths of what was made.

    Raises:
        MissingDataError: parts of the tree are missing, all of which are named, or images are.
        DamagedDataError: a list is not as published, or an image is damaged or without a face.
        UserError: something is in `out` and no `force`.
        StorageError: `out` cannot be written.
    """
    layout = LAYOUTS[name]
    there = [root / folder for folder in layout.images if (root / folder).is_dir()]
    folder = images or next(iter(there), root / layout.images[0])
    lists = [root / part for part in layout.lists]
    _require(name, root, [folder, *(folder / part for part in layout.below), *lists])
    listed = layout.read(root, folder)
    for target in listed:
        refuse_overwriting(out / target, force)
    for target, content in listed.items():
        if isinstance(content, Folds):
            write_listed(
                folder,
                content.pairs,
                out / target,
                maker,
                workers=workers,
                folds=content.folds,
                identity=layout.identity,
            )
        else:
            _write_members(folder, content, out / target, maker, workers)
    return [out / target for target in listed]


def _require(name: str, root: Path, parts: Sequence[Path]) -> None:
    """Raise MissingDataError that names every missing part; of a missing folder that, not what is in it."""
    missing: dict[str, None] = {}
    for part in parts:
        if not part.exists():
            while part.parent not in (root, part) and not part.parent.exists():
                part = part.parent
            missing[str(part.relative_to(root) if part.is_relative_to(root) else part)] = None
    if missing:
        raise MissingDataError(
            f"{root}: is not the published tree of {name}, it lacks {', '.join(missing)}; "
            f"`facerec-data {name} --help` says what it looks like"
        )


def _write_members(root: Path, members: Sequence[Member], out: Path, maker: FaceMaker, workers: int) -> None:
    """Write ``out/identity/image`` of every member; the folder is complete or not there."""
    paths = [member.path for member in members]
    with storing(out), staging(out.absolute()) as stage, staging(out.absolute()) as former:
        for member, face in zip(members, faces_of(root, paths, maker, workers, out.name), strict=True):
            ending = ".jpg" if face.startswith(b"\xff\xd8") else ".png"
            target = stage / member.identity / PurePosixPath(member.path).with_suffix(ending).name
            if target.exists():
                raise UserError(f"{root / member.path}: another image of {out.name} has its name; rename one")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(face)
        if out.exists():
            publish(out, former / out.name)
        publish(stage, out)


# Lists -----------------------------------------------------------------------------------------------------


def _cfp(root: Path, images: Path) -> Listed:
    """Folds of same.txt, then diff.txt: pairs of numbers from the lists of frontal and profile images."""
    frontal, profile = (_numbered(root / f"Protocol/Pair_list_{view}.txt") for view in "FP")
    made = {}
    for view, second in (("P", profile), ("F", frontal)):
        folds: list[list[Pair]] = []
        for fold in range(1, _FOLDS + 1):
            folds.append([])
            for answer in ("same", "diff"):
                path = root / f"Protocol/Split/F{view}/{fold:02}/{answer}.txt"
                for line, text in numbered_lines(path):
                    numbers = [field.strip() for field in text.split(",")]
                    if len(numbers) != 2 or numbers[0] not in frontal or numbers[1] not in second:
                        raise wrong_line(path, line, text, "two numbers of the lists with a comma between")
                    folds[-1].append(Pair(frontal[numbers[0]], second[numbers[1]], answer == "same"))
        made[f"cfp_f{view.lower()}.bin"] = _even(root, folds)
    return made


def _numbered(path: Path) -> dict[str, str]:
    """Paths by their numbers, as texts, from lines like ``1 ../Data/Images/001/frontal/01.jpg``."""
    found = {}
    for line, text in numbered_lines(path):
        number, _, image = text.partition(" ")
        _, _, below = image.partition("Data/Images/")
        if not is_number(number) or not below:
            raise wrong_line(path, line, text, "a number and a path below Data/Images")
        found[number] = below
    return found


def _agedb(root: Path, images: Path) -> Listed:
    """A .mat of ten splits, each of names (2, pairs) and answers, 1 or −1."""
    path = root / "04_FINAL_protocol_30_years.mat"
    folds = []
    for split in _matrix(path, "splits").flat:
        with _as_published(path):
            name_2N, answer_N = split.flat[0][0], split.flat[0][1].ravel().tolist()
            names = [[str(one.flat[0][0].item()) + ".jpg" for one in row] for row in name_2N]
            rows = zip(*names, answer_N, strict=True)
            folds.append([Pair(first, second, answer > 0) for first, second, answer in rows])
    return {"agedb_30.bin": _even(root, folds)}


def _two_lines(name: str, root: Path, images: Path) -> Listed:
    """A line ``image answer`` for each image of a pair; genuine pairs, then impostors, are dealt into folds.

    The answer is 0 of impostors, of genuine pairs 1 or the number of their fold.
    """
    path = root / f"pairs_{name.upper()}.txt"
    lines = [(number, text, text.split()) for number, text in numbered_lines(path)]
    for number, text, fields in lines:
        if len(fields) != 2 or not is_number(fields[1]) or "/" in fields[0]:
            raise wrong_line(path, number, text, "image and answer")
    kinds: dict[bool, list[Pair]] = {True: [], False: []}
    for (_, _, (first, answer)), (number, text, (second, again)) in zip(
        lines[::2], lines[1::2], strict=False
    ):
        if answer != again:
            raise wrong_line(
                path, number, text, f"the second image of the pair above, whose answer is {answer}"
            )
        kinds[answer != "0"].append(Pair(first, second, answer != "0"))
    sizes = [len(pairs) for pairs in kinds.values()]
    if len(lines) % 2 or any(size % _FOLDS for size in sizes):
        raise DamagedDataError(
            f"{path}: {counted(len(lines), 'line')}, {sizes[0]:,} genuine and {sizes[1]:,} impostor pairs, "
            f"are not {_FOLDS} equal folds; get it again"
        )
    genuine, impostor = (_tenths(pairs) for pairs in kinds.values())
    return {f"{name}.bin": _even(root, [one + other for one, other in zip(genuine, impostor, strict=True)])}


def _tenths(pairs: list[Pair]) -> list[list[Pair]]:
    size = len(pairs) // _FOLDS
    return [pairs[at * size : (at + 1) * size] for at in range(_FOLDS)]


def _xqlfw(root: Path, images: Path) -> Listed:
    return {"xqlfw.bin": read_pairs_txt(root / "xqlfw_pairs.txt")}


_GROUPS: Final = ("African", "Asian", "Caucasian", "Indian")


def _rfw(root: Path, images: Path) -> Listed:
    made = {}
    for group in _GROUPS:
        pairs, folds = read_pairs_txt(root / f"txts/{group}/{group}_pairs.txt", folds=_FOLDS)
        below = [Pair(f"{group}/{pair.first}", f"{group}/{pair.second}", pair.same) for pair in pairs]
        made[f"rfw_{group.lower()}.bin"] = Folds(below, folds)
    return made


_TINYFACE: Final = ("gallery_match_img_ID_pairs.mat", "probe_img_ID_pairs.mat")


def _tinyface(root: Path, images: Path) -> Listed:
    """Names and identities of gallery and probes in two .mat; the distractors are all of their folder."""
    made: dict[str, list[Member]] = {}
    for file, kind, target, folder in zip(
        _TINYFACE, ("gallery", "probe"), ("gallery", "probes"), ("Gallery_Match", "Probe"), strict=True
    ):
        path = root / file
        name_N, number_N = (_matrix(path, f"{kind}_{what}").ravel() for what in ("set", "ids"))
        with _as_published(path):
            names = [str(name.item()) for name in name_N]
            made[target] = [
                Member(f"{folder}/{one}", str(int(number)))
                for one, number in zip(names, number_N.tolist(), strict=True)
            ]
    distractors = images_below(images / "Gallery_Distractor")
    made["distractors"] = [Member(f"Gallery_Distractor/{one}") for one in distractors]
    return made


def _even(root: Path, folds: Sequence[list[Pair]]) -> Folds:
    """Folds one after the other, which must be equally many and large."""
    sizes = {len(fold) for fold in folds}
    if len(folds) != _FOLDS or len(sizes) != 1 or sizes == {0}:
        raise DamagedDataError(
            f"{root}: its lists hold {counted(len(folds), 'fold')} of {min(sizes, default=0):,} to "
            f"{max(sizes, default=0):,} pairs, not {_FOLDS} of one size; get them again"
        )
    return Folds([pair for fold in folds for pair in fold], _FOLDS)


def _matrix(path: Path, key: str) -> np.ndarray:
    """An array of a MATLAB file."""
    from scipy.io import loadmat

    with _as_published(path):
        found: np.ndarray = loadmat(path)[key]
        return found


@contextlib.contextmanager
def _as_published(path: Path) -> Iterator[None]:
    """Turn what goes wrong in a MATLAB file of another content into an error that names it."""
    try:
        yield
    except Exception as error:  # SciPy raises errors of many kinds over bytes that are no such file
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise DamagedDataError(
            f"{path}: is not the published MATLAB file ({reason:.80}); get it again"
        ) from error


# Identities ------------------------------------------------------------------------------------------------


def _first_folder(path: str) -> str:
    return path.partition("/")[0]


def _before_number(path: str) -> str:
    """``Aaron_Eckhart`` of ``Aaron_Eckhart_0001.jpg``."""
    return PurePosixPath(path).stem.rpartition("_")[0]


def _agedb_name(path: str) -> str:
    """``MariaCallas`` of ``0_MariaCallas_35_f.jpg``: the first field that is no number."""
    return next((field for field in PurePosixPath(path).stem.split("_") if not field.isdecimal()), path)


LAYOUTS: Final[Mapping[str, Layout]] = {
    "cfp": Layout(
        ("Data/Images",),
        (
            *(f"Protocol/Pair_list_{view}.txt" for view in "FP"),
            *(
                f"Protocol/Split/F{view}/{fold:02}/{answer}.txt"
                for view in "FP"
                for fold in range(1, _FOLDS + 1)
                for answer in ("same", "diff")
            ),
        ),
        _cfp,
        _first_folder,
    ),
    "agedb": Layout(("03_Protocol_Images",), ("04_FINAL_protocol_30_years.mat",), _agedb, _agedb_name),
    "calfw": Layout(("aligned images",), ("pairs_CALFW.txt",), partial(_two_lines, "calfw"), _before_number),
    "cplfw": Layout(("aligned images",), ("pairs_CPLFW.txt",), partial(_two_lines, "cplfw"), _before_number),
    "xqlfw": Layout(
        ("xqlfw_aligned_112", "lfw_original_imgs_min_qual0.85variant11"), ("xqlfw_pairs.txt",), _xqlfw
    ),
    "rfw": Layout(("data",), tuple(f"txts/{group}/{group}_pairs.txt" for group in _GROUPS), _rfw),
    "tinyface": Layout((".",), _TINYFACE, _tinyface, below=("Gallery_Match", "Probe", "Gallery_Distractor")),
}
