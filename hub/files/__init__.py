"""The files of all versions, beside the database."""
