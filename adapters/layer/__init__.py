"""The layer that stands in for a linear module, the stacked weights it reads, and the arithmetic of mixed rows."""
