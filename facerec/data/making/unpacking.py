"""The pictures of a pack as files in folders, one an identity; the bytes are those of the pack."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NamedTuple

from facerec.data.making.listing import Names
from facerec.data.packs import Pack
from facerec.errors import DamagedDataError, UserError
from facerec.files import staging, storing


class Unpacked(NamedTuple):
    """How many files were written, and what was said of records that could not be read."""

    pictures: int
    damaged: list[str]


def unpack(pack: Pack, out: Path, *, force: bool = False) -> Unpacked:
    """Write ``out/identity/picture`` for every picture; names are those of the `.lst`, else numbers.

    They are written into a hidden folder beside `out`, which takes its place at the end. With `force` the
    files of a folder that is there are replaced one by one, and its other files stay.

    Raises:
        UserError: `out` holds something and no `force`; two pictures have one name; a name is too long.
        DamagedDataError: the `.lst` is not in order.
        StorageError: a file cannot be written.
    """
    from tqdm import tqdm

    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise UserError(f"{out}: is not empty; --force writes into it, replacing files of the same names")
    names, lst = Names(pack), pack.root.with_suffix(".lst")
    damaged: list[str] = []
    with storing(out), staging(out.absolute()) as stage:
        for i in tqdm(range(len(pack)), desc=f"unpacking {pack.name}", unit=" pictures", disable=None):
            try:
                content = pack.encoded(i)
            except DamagedDataError as problem:
                damaged.append(str(problem))
                continue
            target = stage / names.picture(i)
            try:
                if target.parent != stage:
                    target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    file.write(content)
            except FileExistsError:
                raise UserError(
                    f"{lst}: names two pictures {target.relative_to(stage)}; "
                    "mend it, or move it away to have them numbered"
                ) from None
            except OSError as problem:
                if problem.errno != errno.ENAMETOOLONG:
                    raise
                longest = max(target.relative_to(stage).parts, key=lambda part: len(os.fsencode(part)))
                raise UserError(
                    f"{lst}: identity {names.identity(i):.60}: the name {longest:.60}… "
                    f"has {len(os.fsencode(longest))} bytes, a file's {os.pathconf(stage, 'PC_NAME_MAX')} at "
                    "most; shorten it, or move that file away to have them numbered"
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
