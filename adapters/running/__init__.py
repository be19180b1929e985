"""One pass of the body for many rows, each with its own adapter."""
