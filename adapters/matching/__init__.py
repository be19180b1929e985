"""A checkpoint held against a backbone: what loads how, and the place of every key."""
