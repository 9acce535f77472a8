"""Reading, writing, checking and batching face pictures."""
