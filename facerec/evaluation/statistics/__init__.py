"""Statistics of pairs and ranks: metrics, folds, bootstrap, comparison."""
