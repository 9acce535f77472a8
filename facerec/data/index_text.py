"""Former name of `facerec.packs.index`."""

from facerec.packs.index import read_index as parse

__all__ = ["parse"]
