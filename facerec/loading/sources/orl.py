"""data.kind=orl: the ORL faces, packed on first use."""

from __future__ import annotations

from pathlib import Path

from facerec.errors import ConfigError
from facerec.images.images import LabelledImages
from facerec.loading.settings import DataSettings
from facerec.loading.sources import SOURCES
from facerec.making.orl import pack_orl
from facerec.packs.pack import open_pack


@SOURCES.register("orl")
def open_orl(settings: DataSettings) -> LabelledImages:
    """The pack in `settings.root`, made there first where it is missing."""
    if not settings.root:
        raise ConfigError("data.root", settings.root, "must be the folder of the pack, or where to make it")
    root = Path(settings.root)
    pack_orl(root)
    return open_pack(root, name=settings.name or "orl")
