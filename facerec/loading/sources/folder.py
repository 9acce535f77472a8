"""data.kind=folder: aligned images in a folder per identity."""

from __future__ import annotations

from facerec.errors import require
from facerec.images.images import LabelledImages
from facerec.loading.folders import FolderImages
from facerec.loading.settings import DataSettings
from facerec.loading.sources import SOURCES, existing_root


@SOURCES.register("folder")
def open_folder(settings: DataSettings, min_images: int = 1) -> LabelledImages:
    """The folder `settings.root`; option ``min_images`` leaves out identities with fewer images."""
    require(min_images >= 1, "data.options.min_images", min_images, "must be 1 or more")
    return FolderImages(existing_root(settings), settings.name, min_images)
