"""Identities and images that are in the training set and in the test: its numbers are not worth quoting."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import numpy as np

from facerec.errors import DamagedDataError, counted
from facerec.evaluation.results import logger, warn
from facerec.images.images import LabelledImages
from facerec.loading.sources.mix import MixedImages
from facerec.models.model import Model
from facerec.packs.text import plain_name
from facerec.packs.verification import VerificationSet

_RUNS, _RUN = 64, 256  # training images looked at: all, or so many runs of neighbours, for hard disks
_LONGEST_LIST = 1 << 26  # bytes of a .lst that is read for its names: about a million lines, a second


def overlap_notes(model: Model, names: Iterable[str], test: str) -> list[str]:
    """Return a warning where the model was trained on identities of the test, by the names of both.

    Args:
        model: knows the names it was trained with, where its checkpoint has names.
        names: of the identities in the test; mere numbers are no names.
        test: name of the test, for the warning.
    """
    common = _common({plain_name(name.rpartition("/")[2]) for name in model.identities}, names)
    if not common:
        return []
    count = f"{counted(len(common), 'identity')} of {test}"
    return warn(f"the training set holds {count} ({_shown(common, 5)}): its numbers are too good")


def warn_of_overlap(faces: LabelledImages, tests: Sequence[VerificationSet]) -> None:
    """Warn of each test that shares names of identities, or images to the byte, with a training set.

    Names are compared where both have some (a folder's, a `.lst`'s; `packs.verification.identities_path`).
    Of a large training set some images are looked at only; were a test part of it, some would be found.
    """
    if not tests:
        return
    known = set(map(plain_name, _identity_names(faces)))
    seen, looked = _images(faces) if faces.root.exists() else (set(), 0)  # else made on the spot
    of = "" if looked == len(faces) else f" ({looked:,} of {len(faces):,} training images were looked at)"
    for test in tests:
        common = _common(known, () if test.identity_2N is None else np.unique(test.identity_2N))
        images = sum(hash(image) in seen for image in test.images)
        found = []
        if common:
            found.append(f"{counted(len(common), 'identity')} ({_shown(common, 3)})")
        if images:
            found.append(f"{images:,} of {counted(len(test.images), 'image')}{of}")
        if found:
            logger.warning(
                "%s of %s are in the training set: its numbers are too good; `facerec-data filter PACK OUT "
                "--overlap LIST` makes a pack without the identities of a list",
                *(" and ".join(found), test.name),
            )


def _identity_names(faces: LabelledImages) -> Iterable[str]:
    """Names of the folders of the training images, where they are known."""
    if isinstance(faces, MixedImages):
        return [name for part in faces.parts for name in _identity_names(part)]
    names = faces.root.with_suffix(".lst")
    if faces.root.suffix != ".rec" or not names.is_file() or names.stat().st_size > _LONGEST_LIST:
        return [str(name) for name in faces.classes]
    with names.open(encoding="utf-8", errors="surrogateescape") as lines:
        return {line.rpartition("\t")[2].rpartition("/")[0].rpartition("/")[2] for line in lines}


def _images(faces: LabelledImages) -> tuple[set[int], int]:
    """Hashes of training images, and how many were looked at; damaged ones are somebody else's concern."""
    count = len(faces)
    begins = (
        range(0, count, _RUN) if count <= _RUNS * _RUN else np.linspace(0, count - _RUN, _RUNS).astype(int)
    )
    seen: set[int] = set()
    looked = 0
    for begin in begins:
        for i in range(begin, min(begin + _RUN, count)):
            looked += 1
            with contextlib.suppress(DamagedDataError):
                seen.add(hash(bytes(faces.encoded(i))))
    return seen, looked


def _common(plain: set[str], names: Iterable[str]) -> list[str]:
    """One spelling of each of `names` whose `plain_name` is among those given, sorted."""
    spelled = {plain_name(str(name)): str(name) for name in names}
    return sorted(spelled[name] for name in spelled.keys() & plain - {""})


def _shown(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
