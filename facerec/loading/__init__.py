"""Load training images: sources, order, batches."""
