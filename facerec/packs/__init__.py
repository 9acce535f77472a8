"""Packs: `recordio` reads and writes `.rec`, `framing` knows its bytes, `index` its `.idx`, `pack` labels.

`verification` reads and writes the `.bin` files of image pairs.
"""
