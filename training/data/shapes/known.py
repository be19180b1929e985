"""The layouts that instructions and pairs for embeddings mostly come in, by the columns that show them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lorary.training.data.examples import Note
from lorary.training.data.files.source import Source

# What a layout is called, the columns that it shows by, and what a recipe has to say for it. Pairs stand before chats:
# UltraFeedback's rows have the chosen one among their messages, too.
_LAYOUTS: tuple[tuple[str, frozenset[str], str], ...] = (
    (
        "Alpaca's",
        frozenset({"instruction", "input", "output"}),
        "prompt: instruction, input: input, completion: output",
    ),
    ("Alpaca's without input", frozenset({"instruction", "output"}), "prompt: instruction, completion: output"),
    (
        "LLaMA-Factory's preference pairs",
        frozenset({"conversations", "chosen", "rejected"}),
        "prompt: conversations, chosen: chosen, rejected: rejected",
    ),
    (
        "preference pairs",
        frozenset({"prompt", "chosen", "rejected"}),
        "prompt: prompt, chosen: chosen, rejected: rejected",
    ),
    (
        "preference pairs",
        frozenset({"question", "chosen", "rejected"}),
        "prompt: question, chosen: chosen, rejected: rejected",
    ),
    ("preference pairs", frozenset({"chosen", "rejected"}), "chosen: chosen, rejected: rejected"),
    ("ShareGPT's", frozenset({"conversations"}), "messages: conversations"),
    ("chats", frozenset({"messages"}), "messages: messages"),
    (
        "Dolly's",
        frozenset({"instruction", "context", "response"}),
        "prompt: instruction, input: context, completion: response",
    ),
    ("questions and answers", frozenset({"question", "answer"}), "prompt: question, completion: answer"),
    ("prompts and responses", frozenset({"prompt", "response"}), "prompt: prompt, completion: response"),
    ("inputs and outputs", frozenset({"input", "output"}), "prompt: input, completion: output"),
    ("running text", frozenset({"text"}), "text: text"),
)

# Those of sentence-transformers' data, for embeddings.
_PAIRS: tuple[tuple[str, frozenset[str], str], ...] = (
    ("scored pairs", frozenset({"text", "text_pair", "score"}), "text: text, text_pair: text_pair, score: score"),
    (
        "scored pairs",
        frozenset({"sentence1", "sentence2", "score"}),
        "text: sentence1, text_pair: sentence2, score: score",
    ),
    ("triples", frozenset({"anchor", "positive", "negative"}), "text: anchor, positive: positive, negative: negative"),
    ("triples", frozenset({"query", "positive", "negative"}), "text: query, positive: positive, negative: negative"),
    ("FlagEmbedding's", frozenset({"query", "pos", "neg"}), "text: query, positive: pos, negative: neg"),
    ("FlagEmbedding's", frozenset({"query", "pos"}), "text: query, positive: pos"),
    ("sets of like texts", frozenset({"set"}), "text: set, positive: set"),
    ("pairs", frozenset({"anchor", "positive"}), "text: anchor, positive: positive"),
    ("pairs", frozenset({"query", "positive"}), "text: query, positive: positive"),
    ("questions and answers", frozenset({"question", "answer"}), "text: question, positive: answer"),
)

_CLASSES = (("TREC's", frozenset({"coarse_label", "fine_label"}), "label: coarse_label} or {label: fine_label"),)

_INPUTS = ("input", "context")
"""Columns that hold what an instruction is about."""

_BESIDE = ("system", "tools", "chat_template_kwargs", "history", *_INPUTS)
"""Columns that some files have for the template, beside messages or a prompt."""


def hint(seen: Collection[str], columns: Mapping[str, str]) -> list[str]:
    """A line on what ``data.columns`` has to say for rows of a known layout; none for other tasks."""
    prompts, pairs = (bool(columns.keys() & roles) for roles in ({"prompt", "messages", "chosen"}, {"positive"}))
    layouts = _LAYOUTS if prompts else _PAIRS if pairs else _CLASSES if "label" in columns else ()
    known = next(((name, setting) for name, shows, setting in layouts if shows <= set(seen)), None)
    if known is None:
        return []
    templates = prompts and known[0] != "running text"
    told = [role for role in ("tools", "chat_template_kwargs") if role in seen and templates]
    beside = "".join(f", {role}: {role}" for role in told)
    return [f"the rows look like {known[0]}; set data.columns to {{{known[1]}{beside}}}"]


def note_larger_form(source: Source, columns: Mapping[str, str], forms: Collection[frozenset[str]], note: Note) -> None:
    """Tell ``note`` where the rows have all columns of a form of the task that takes more of them than are read."""
    for form in forms:
        more = form - columns.keys()
        # What an instruction is about is told of beside it, and a prompt may be in both of a pair, as it stands there.
        if not columns.keys() < form or more & {*_INPUTS, "prompt"}:
            continue
        filled = [row for row in source.rows if all(row.values.get(role) not in (None, "") for role in more)]
        if filled and not more & set(columns.values()):
            wanted = ", ".join(f"{role}: {columns.get(role, role)}" for role in [*columns, *sorted(more)])
            note(
                f"{len(filled)} of {len(source.rows)} rows have {' and '.join(map(repr, sorted(more)))} (first: "
                f"{filled[0].place}), which isn't read; to read it, set data.columns to {{{wanted}}}"
            )


def note_beside(source: Source, columns: Mapping[str, str], note: Note) -> None:
    """Tell ``note`` of columns that count in files of this kind, and that aren't read."""
    if not columns.keys() & {"messages", "completion", "chosen"}:
        return
    what, beside = ("chats", "their messages") if "messages" in columns else ("rows", "what is read")
    for column in _BESIDE:
        filled = [row for row in source.rows if row.values.get(column)]
        if column in _INPUTS and ("input" in columns or "messages" in columns):
            continue
        if filled and column not in columns.values():
            instead = _INSTEAD[column] if column not in _INPUTS or "completion" in columns else "put it into the prompt"
            note(
                f"{len(filled)} of {len(source.rows)} {what} have {column!r} beside {beside} (first: "
                f"{filled[0].place}), which isn't read; {instead}"
            )
    bad = [row for row in source.rows if row.values.get("label") is False]  # as files for KTO have it
    if bad and "completion" in columns:
        note(
            f"{len(bad)} of {len(source.rows)} rows have the label false (first: {bad[0].place}), and are learned like "
            "the others; leave them out, or make preference pairs of them"
        )


_INSTEAD = {
    "system": "put it into a system message",
    "tools": "set data.columns.tools to tools",
    "chat_template_kwargs": "set data.columns.chat_template_kwargs to chat_template_kwargs",
    "input": "set data.columns.input to input",
    "context": "set data.columns.input to context",
    "history": "put it into messages before the prompt's",
}
