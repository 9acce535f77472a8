"""The images of a pack as files, one folder per identity; the bytes are those of the pack."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from facerec.errors import DamagedDataError, UserError
from facerec.files import publish, staging, storing
from facerec.packs.pack import Pack
from facerec.progress import Bar


def unpack(pack: Pack, out: Path, *, force: bool = False) -> list[str]:
    """Write ``out/identity/image`` for every image; names are those of the `.lst`, else numbers.

    They are written into a hidden folder beside `out`, which takes its place at the end. With `force` the
    files of a folder that is there are replaced one by one, and its other files stay.

    Returns:
        The reasons why records could not be read.

    Raises:
        UserError: `out` holds something and no `force`; two images have one name; a name is too long.
        DamagedDataError: the `.lst` is malformed.
        StorageError: a file cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder")
    in_use = out.is_dir() and any(out.iterdir())
    if in_use and not force:
        raise UserError(f"{out}: is not empty; --force writes into it, replacing files of the same names")
    lst = pack.root.with_suffix(".lst")
    damaged: list[str] = []
    with storing(out), staging(out.absolute()) as stage:
        for i in Bar(range(len(pack)), desc=f"unpacking {pack.title}", unit=" images"):
            try:
                content = pack.encoded(i)
            except DamagedDataError as problem:
                damaged.append(str(problem))
                continue
            target = stage / pack.name(i)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    file.write(content)
            except FileExistsError:
                raise UserError(
                    f"{lst}: names two images {target.relative_to(stage)}; "
                    "correct it, or move it away to have them numbered"
                ) from None
            except OSError as problem:
                if problem.errno != errno.ENAMETOOLONG:
                    raise
                longest = max(target.relative_to(stage).parts, key=lambda part: len(os.fsencode(part)))
                raise UserError(
                    f"{lst}: identity {pack.label(i):.60}: the name {longest:.60}… "
                    f"has {len(os.fsencode(longest))} bytes, a file's {os.pathconf(stage, 'PC_NAME_MAX')} at "
                    "most; shorten it, or move that file away to have them numbered"
                ) from None
        files = [str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file()]
        publish(stage, out, sorted(files) if in_use else None)
    return damaged
