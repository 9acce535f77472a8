"""What people look at: figures, reports, sweep tables, TensorBoard."""
