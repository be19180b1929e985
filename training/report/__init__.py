"""What a run came to, for people: curves, mistakes, the worst rows, as JSON, PNG and one HTML page."""
