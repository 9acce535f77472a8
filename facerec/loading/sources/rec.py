"""data.kind=rec: a face pack in MXNet RecordIO, of the InsightFace or the im2rec layout."""

from __future__ import annotations

from facerec.images.images import LabelledImages
from facerec.loading.settings import DataSettings
from facerec.loading.sources import SOURCES, existing_root
from facerec.packs.pack import open_pack


@SOURCES.register("rec")
def open_rec(settings: DataSettings) -> LabelledImages:
    """The pack in the folder `settings.root`, or the `.rec` of that name."""
    return open_pack(existing_root(settings), title=settings.name, damaged=settings.on_error)
