"""The first faces of a pack on one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from facerec.errors import DamagedDataError
from facerec.files import replacing
from facerec.images.decode import decode
from facerec.packs.pack import Pack

_SIDE, _COLUMNS, _GAP = 112, 10, 2
_GROUND = (48, 48, 48)


def contact_sheet(pack: Pack, out: Path, count: int = 100) -> int:
    """Write a PNG of the first image of each of the first `count` identities, ten per row.

    A damaged image is a red square.

    Returns:
        The number of faces.

    Raises:
        StorageError: it cannot be written.
    """
    _, first_C = np.unique(pack.label_N, return_index=True)
    shown = first_C[:count].tolist()
    step = _SIDE + _GAP
    columns, rows = min(_COLUMNS, len(shown)), -(-len(shown) // _COLUMNS)
    sheet = Image.new("RGB", (columns * step + _GAP, rows * step + _GAP), _GROUND)
    for cell, i in enumerate(shown):
        corner = (cell % _COLUMNS * step + _GAP, cell // _COLUMNS * step + _GAP)
        try:
            sheet.paste(Image.fromarray(decode(pack.encoded(i), _SIDE)), corner)
        except DamagedDataError:
            sheet.paste((160, 0, 0), (*corner, corner[0] + _SIDE, corner[1] + _SIDE))
    with replacing(out) as file:
        sheet.save(file, "PNG")
    return len(shown)
