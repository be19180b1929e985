"""The ``lorary`` command: its frame, what its subcommands share, and the subcommands themselves in ``commands``."""
