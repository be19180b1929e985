"""Task heads around one shared body."""
