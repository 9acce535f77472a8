"""Decode, prepare, augment and align images."""
