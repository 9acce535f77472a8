"""Read pickled files (.bin, .pt, .metadata) without executing anything in them."""
