"""Hiding parts of a text for the model to tell: single tokens for encoders, spans for encoder-decoders."""
