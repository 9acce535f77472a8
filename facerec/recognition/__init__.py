"""Use a trained model: compare two faces (1:1), find a face among many (1:N)."""
