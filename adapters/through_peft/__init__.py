"""Adapters that the slots can't hold: each runs through PEFT, in a model of its own over the backbone's memory."""
