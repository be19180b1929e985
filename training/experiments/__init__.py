"""Several runs that are compared: seeds, folds, sizes of the data, strategies."""
