"""What follows a training run: console, metrics.jsonl, TensorBoard, result files."""
