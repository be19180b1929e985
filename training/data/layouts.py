"""The layouts that instruction data mostly comes in, by the columns that show them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

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


def hint(seen: Collection[str], columns: Mapping[str, str]) -> list[str]:
    """A line on what ``data.columns`` has to say for rows of a known layout; none for tasks without prompts."""
    if not columns.keys() & {"prompt", "messages", "chosen"}:
        return []
    known = next(((name, setting) for name, shows, setting in _LAYOUTS if shows <= set(seen)), None)
    return [f"the rows look like {known[0]}; set data.columns to {{{known[1]}}}"] if known else []
