"""Former name of `facerec.images.decode`."""

from facerec.images.decode import decode, decode_into

__all__ = ["decode", "decode_into"]
