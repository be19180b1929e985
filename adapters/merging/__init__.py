"""One adapter and its backbone as a single model."""
