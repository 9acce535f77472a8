"""Read and write packs: the RecordIO container, index and labels, face packs, verification `.bin` files."""
