"""The images of a pack as files in folders, one an identity; the bytes are those of the pack."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from facerec.errors import DamagedDataError, UserError
from facerec.files import staging, storing
from facerec.packs.listing import Names
from facerec.packs.pack import Pack


class Unpacked(NamedTuple):
    """How many files were written, and what was said of records that could not be read."""

    images: int
    damaged: list[str]


def unpack(pack: Pack, out: Path, *, force: bool = False) -> Unpacked:
    """Write ``out/identity/image`` for every image; names are those of the `.lst`, else numbers.

    They are written into a hidden folder beside `out`, which takes its place at the end. With `force` the
    files of a folder that is there are replaced one by one, and its other files stay.

    Raises:
        UserError: `out` holds something and no `force`; two images have one name.
        DamagedDataError: the `.lst` is not in order.
        StorageError: a file cannot be written.
    """
    from tqdm import tqdm

    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise UserError(f"{out}: is not empty; --force writes into it, replacing files of the same names")
    names = Names(pack)
    damaged: list[str] = []
    with storing(out), staging(out.absolute()) as stage:
        for i in tqdm(range(len(pack)), desc=f"unpacking {pack.name}", unit=" images", disable=None):
            try:
                content = pack.encoded(i)
            except DamagedDataError as problem:
                damaged.append(str(problem))
                continue
            target = stage / names.image(i)
            if target.parent != stage:
                target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with target.open("xb") as file:
                    file.write(content)
            except FileExistsError:
                raise UserError(
                    f"{pack.root.with_suffix('.lst')}: names two images {target.relative_to(stage)}; "
                    "hint it, or move it away to have them numbered"
                ) from None
        _publish(stage, out)
    return Unpacked(len(pack) - len(damaged), damaged)


def _publish(stage: Path, out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        for path in sorted(path for path in stage.rglob("*") if path.is_file()):
            target = out / path.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        return
    if out.is_dir():
        out.rmdir()
    stage.rename(out)
