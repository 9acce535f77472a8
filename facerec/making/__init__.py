"""Making packs: from folders, lists and other packs; aligning, drawing pairs. One idea a module, no torch."""
