"""Embeddings of pictures and the protocols that judge them."""
