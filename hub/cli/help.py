"""How the command line's help looks: commands by what they are for, and types as a shell's manual names them."""

from __future__ import annotations

import re
from keyword import iskeyword
from typing import Any

from typer.core import TyperCommand, TyperGroup

# Every subcommand, in the order and under the titles that `lorary --help` shows.
GROUPS = {
    "Train": ("quickstart", "train", "advise", "estimate", "curve", "pretrain"),
    "Find": ("list", "show", "best", "domains", "tasks", "diff", "eval", "bases"),
    "Use": ("run", "compare", "serve", "blend", "merge", "export"),
    "Share": ("push", "pull", "status", "sync", "import"),
    "Keep": ("alias", "promote", "rollback", "tag", "rm", "verify", "gc", "doctor"),
}

COMMANDS = tuple(name for names in GROUPS.values() for name in names)

_TYPES = {"str": "TEXT", "list[str]": "TEXT", "int": "N", "int range": "N", "float": "NUMBER"}


def module_of(command: str) -> str:
    """The module that a subcommand stands in: its name, with an underscore where Python keeps that for itself."""
    return f"lorary.hub.cli.commands.{command}{'_' if iskeyword(command) else ''}"


class Group(TyperGroup):
    """``lorary`` itself."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands that were registered, group by group, each with the first sentence of its help."""
        limit = formatter.width - 6 - max(map(len, self.commands))
        for title, names in GROUPS.items():
            rows = [(name, self.commands[name].get_short_help_str(limit)) for name in names if name in self.commands]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Command(TyperCommand):
    """A subcommand. typer names Python's types (``<list[str]>``) and puts required arguments into braces."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """``REF [TEXT]...`` in place of ``{REF} [TEXT]...``."""
        return [re.sub(r"[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments by their names alone, and options with a word for what they take."""
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            params = [param for param in self.get_params(ctx) if param.param_type_name == kind]
            records = [record for param in params if (record := param.get_help_record(ctx))]
            rows = [(re.sub(r" <(.*?)>$", _WORDS[kind], names), text) for names, text in records]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


_WORDS: dict[str, Any] = {"argument": "", "option": lambda found: f" {_TYPES.get(found[1], found[1].upper())}"}
