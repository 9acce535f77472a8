"""Statistics of pairs, ranks and centres: metrics, folds, bootstrap, comparison, search."""
