"""Before anything is trained: what the rows, the base and the catalogue say about how to."""
