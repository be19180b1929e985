"""Keeping the catalogue: aliases and their history, removing, clearing up, verifying."""
