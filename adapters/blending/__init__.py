"""A weighted sum of adapters as a new adapter."""
