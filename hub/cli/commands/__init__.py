"""A file per subcommand, each with a ``command`` function and its ``EXAMPLES``."""
