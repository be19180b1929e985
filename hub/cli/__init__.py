"""The ``lorary`` command: a file per subcommand, each with a ``command`` function and its ``EXAMPLES``."""
