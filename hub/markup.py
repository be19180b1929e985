"""Texts from strangers where something acts on what they hold: a terminal, Markdown, HTML."""

from __future__ import annotations

import re
from typing import Any

LONGEST = 300
"""Characters of a stranger's text that a card shows."""

# What Markdown or KaTeX acts upon inside a line; `@` would make an address a link.
_MARKUP = re.compile(r"[\\`*_\[\]|~${}@]")


def clean(text: object) -> str:
    """``text`` with everything escaped that a terminal acts upon: names, labels and cards come from strangers."""
    return "".join(sign if sign.isprintable() else _escape(sign) for sign in str(text))


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")


def short(text: object) -> str:
    """:func:`clean` of one line's worth of ``text``."""
    line = clean(" ".join(str(text).split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def markdown(text: object) -> str:
    """``text`` as it stands, inside a line or a table's cell of Markdown: no markup, no HTML, no links."""
    escaped = short(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = _MARKUP.sub(r"\\\g<0>", escaped)
    return escaped.replace("://", ":\\//").replace("www.", "www\\.")  # else a bare address becomes a link


def python_literal(value: Any) -> str:
    """A text, or another value that JSON has, as a Python literal in ASCII, on one line."""
    literal = ascii(value)
    if not isinstance(value, str):
        return literal
    return f'"{literal[1:-1]}"' if literal[0] == "'" and '"' not in literal else literal
