"""Finding versions in the catalogue: conditions, order, full text, the best for a purpose, the whole at a glance."""
