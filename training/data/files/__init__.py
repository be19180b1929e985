"""Opening data files, and what they hold, row by row."""
