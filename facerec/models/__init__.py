"""A backbone with its preprocessing: open any model file, load pretrained weights, export."""
