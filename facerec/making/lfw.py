"""Labeled Faces in the Wild (Huang et al. 2007), from its folder and lists: a pack to train on, and pairs.

View 2 is ten sets of people; fold k of `pairs.txt` is of the people of set k of `people.txt`. Whoever trains
on some sets may quote the pairs of the others only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from facerec.errors import DamagedDataError, MissingDataError, UserError, counted
from facerec.files import refuse_overwriting
from facerec.images.face_maker import FaceMaker
from facerec.loading.folders import folder_entries
from facerec.making.builder import Built, PackBuilder
from facerec.making.from_folder import pack_folder
from facerec.making.pair_lists import read_pairs_txt, read_people_txt
from facerec.making.verification_sets import write_listed
from facerec.packs.verification import identities_path


def make_lfw(
    root: Path,
    lists: Path,
    out: Path,
    maker: FaceMaker,
    *,
    sets: Sequence[int] | None = None,
    force: bool = False,
    workers: int = 1,
) -> Built:
    """Make the pack of the people of some sets, `lfw.bin`, and ``lfw_set<k>.bin`` of each other set.

    Args:
        root: images ``name/name_0001.jpg``.
        lists: the folder of `pairs.txt` and `people.txt`.
        sets: the sets to train on, from 1; None: all.

    Raises:
        MissingDataError: a list, a person or an image is not there.
        DamagedDataError: a list is not in order, or the two do not fit.
        UserError: there is no such set, or `out` holds files already.
        StorageError: `out` cannot be written.
    """
    people = read_people_txt(lists / "people.txt")
    pairs, folds = read_pairs_txt(lists / "pairs.txt")
    if folds != len(people):
        raise DamagedDataError(f"{lists}: pairs.txt has {folds} folds, people.txt {len(people)} sets")
    trained = range(1, folds + 1) if sets is None else sets
    wrong = [number for number in trained if not 1 <= number <= folds]
    if wrong or not trained:
        raise UserError(f"--sets {','.join(map(str, trained))}: must be some of 1 to {folds}")
    names = sorted(name for number in trained for name in people[number - 1])
    many = {name: count for number in trained for name, count in people[number - 1].items()}
    for name in names:
        _require_person(root, name, many[name])
    held_out = [number for number in range(1, folds + 1) if number not in trained]
    fold = len(pairs) // folds
    files = {"lfw.bin": pairs} | {f"lfw_set{k}.bin": pairs[(k - 1) * fold : k * fold] for k in held_out}
    for file in files:
        refuse_overwriting(out / file, force)

    def beside(builder: PackBuilder) -> None:
        for file, listed in files.items():
            path = builder.beside(file)
            write_listed(root, listed, path, maker, workers=workers, folds=folds if listed is pairs else None)
            if identities_path(path).exists():  # not where the list contradicts the names
                builder.beside(identities_path(path).name)

    return pack_folder(root, out, maker, force=force, workers=workers, only=names, beside=beside)


def _require_person(root: Path, name: str, many: int) -> None:
    folder = root / name
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: is in people.txt, but not there; give the folder of all of LFW")
    there = len(folder_entries(folder, root).files)
    if there != many:
        raise MissingDataError(
            f"{folder}: holds {counted(there, 'image')}, people.txt says {many}; get LFW again"
        )
