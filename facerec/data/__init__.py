"""Reading, writing, checking and batching face images."""
