"""What the labels and tags of rows are."""
