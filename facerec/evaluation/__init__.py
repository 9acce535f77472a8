"""Embeddings of images and the protocols that judge them."""
