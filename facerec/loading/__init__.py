"""Images to train on or to embed: `sources` open them, `order` has their turn, `loader` decodes batches."""
