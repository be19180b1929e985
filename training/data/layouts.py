"""The layouts that instruction data mostly comes in, by the columns that show them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lorary.training.data.examples import Note
from lorary.training.data.files import Source

# What a layout is called, the columns that it shows by, and what a recipe has to say for it.
_LAYOUTS: tuple[tuple[str, frozenset[str], str], ...] = (
    (
        "Alpaca's",
        frozenset({"instruction", "input", "output"}),
        "prompt: instruction, input: input, completion: output",
    ),
    ("Alpaca's without input", frozenset({"instruction", "output"}), "prompt: instruction, completion: output"),
    ("ShareGPT's", frozenset({"conversations"}), "messages: conversations"),
    ("chats", frozenset({"messages"}), "messages: messages"),
    (
        "preference pairs",
        frozenset({"prompt", "chosen", "rejected"}),
        "prompt: prompt, chosen: chosen, rejected: rejected",
    ),
    ("preference pairs", frozenset({"chosen", "rejected"}), "chosen: chosen, rejected: rejected"),
    (
        "Dolly's",
        frozenset({"instruction", "context", "response"}),
        "prompt: instruction, input: context, completion: response",
    ),
    ("questions and answers", frozenset({"question", "answer"}), "prompt: question, completion: answer"),
    ("prompts and responses", frozenset({"prompt", "response"}), "prompt: prompt, completion: response"),
    ("running text", frozenset({"text"}), "text: text"),
)


_BESIDE_MESSAGES = ("system", "tools")
"""Columns that some files of chats have for the template, beside the messages."""


def hint(seen: Collection[str], columns: Mapping[str, str]) -> list[str]:
    """A line on what ``data.columns`` has to say for rows of a known layout; none for tasks without prompts."""
    if not columns.keys() & {"prompt", "messages", "chosen"}:
        return []
    known = next(((name, setting) for name, shows, setting in _LAYOUTS if shows <= set(seen)), None)
    return [f"the rows look like {known[0]}; set data.columns to {{{known[1]}}}"] if known else []


def nested(source: Source) -> list[str]:
    """A line for each column whose values have columns of their own, as the first row has them."""
    return [
        f"{column} has columns of its own ({', '.join(map(str, value))}), which can't be named; write them beside it"
        for column, value in source.rows[0].values.items()
        if isinstance(value, Mapping)
    ]


def note_beside(source: Source, columns: Mapping[str, str], note: Note) -> None:
    """Tell ``note`` of columns that belong to a chat and aren't read."""
    for column in _BESIDE_MESSAGES if "messages" in columns else ():
        filled = [row for row in source.rows if row.values.get(column)]
        if filled:
            note(
                f"{len(filled)} of {len(source.rows)} chats have {column!r} beside their messages (first: "
                f"{filled[0].place}), which isn't read; put it into a system message"
            )
