"""``registry.db``: opening it, its tables, and the rows of a version."""
