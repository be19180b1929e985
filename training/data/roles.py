"""What a row's value has to be in each role, and what is wrong with it otherwise."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from lorary.adapters.text.tools import from_json_text, tools_problem
from lorary.hub.manifest import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from lorary.hub.template_kwargs import template_kwargs_problem
from lorary.training.data.shapes.answers import answer_problem, answers_problem, misplaced, start_problem
from lorary.training.data.shapes.messages import (
    as_chat,
    as_messages,
    chat_problem,
    messages_problem,
    reply_problem,
    same_kind,
)
from lorary.training.data.shapes.written import written_list
from lorary.training.recipe.raw import shown

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
"""A number as text, the way CSV files hold them."""


def _text(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"expected a text, found {shown(value)}"
    return None if value.strip() else "is empty"


def _label(value: Any) -> str | None:
    if not isinstance(value, (str, int)):
        return f"expected a label's name or number, found {shown(value)}"
    return "is empty" if isinstance(value, str) and not value.strip() else None


def _class(value: Any) -> str | None:
    if isinstance(value, list):
        several = f"where rows have several, set problem_type to {MULTI_LABEL}"
        return f"expected a label's name or number, found {shown(value)}; {several}"
    # Spreadsheets and data frames write class 1 as 1.0 where a column had a gap.
    return None if isinstance(value, float) and value.is_integer() else _label(value)


def _labels(value: Any) -> str | None:
    if not isinstance(value, list):
        return (
            f"expected a list of labels ({MULTI_LABEL}), found {shown(value)}; columns of 0 and 1 are named with "
            "data.label_columns, and what stands between the labels of a text with data.label_separator"
        )
    for place, label in enumerate(value, start=1):
        problem = _label(label)
        if problem:
            return f"label {place}: {problem}"
    return None


def _number(value: Any) -> str | None:
    written = isinstance(value, str) and NUMBER.fullmatch(value.strip())
    if not written and (isinstance(value, bool) or not isinstance(value, (int, float, Decimal))):
        return f"expected a number ({REGRESSION}), found {shown(value)}"
    return None if _is_finite(value) else f"expected a finite number, found {shown(value)}"


def _tokens(value: Any) -> str | None:
    if not isinstance(value, list):
        return f"expected a list of words, found {shown(value)}"
    if not value:
        return "is an empty list"
    for place, word in enumerate(value, start=1):
        if not isinstance(word, str) or not word.strip():
            return f"word {place} is {shown(word)}, expected a text that isn't empty"
    return None


def _tags(value: Any) -> str | None:
    if not isinstance(value, list):
        return f"expected a list of tags, found {shown(value)}"
    for place, tag in enumerate(value, start=1):
        problem = _label(tag)
        if problem:
            return f"tag {place}: {problem}"
    return None


def _prompt(value: Any) -> str | None:
    return messages_problem(value) if isinstance(value, list) else _text(value)


def _reply(value: Any) -> str | None:
    return reply_problem(value) if isinstance(value, list) else _text(value)


def _maybe_empty(value: Any) -> str | None:
    return None if value is None or isinstance(value, str) else f"expected a text or nothing, found {shown(value)}"


def _tools(value: Any) -> str | None:
    return None if value is None else tools_problem(value)


def _template_kwargs(value: Any) -> str | None:
    return None if value is None else template_kwargs_problem(value)


def _score(value: Any) -> str | None:
    finite = not isinstance(value, bool) and _is_finite(value)
    return None if finite else f"expected a number, found {shown(value)}"


def _is_finite(value: Any) -> bool:
    """Is it a finite number, or one as a text (a CSV file's)? A whole number may be too large for a float."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


CHECKS: Mapping[str, Callable[[Any], str | None]] = {
    "text": _text, "text_pair": _text, "prompt": _prompt, "input": _maybe_empty, "completion": _reply,
    "chosen": _reply, "rejected": _reply, "label": _label, "tokens": _tokens, "tags": _tags, "messages": chat_problem,
    "summary": _text, "source": _text, "target": _text,
    "question": _text, "context": _text, "answers": answers_problem,
    "positive": _text, "negative": _text, "score": _score,
    "answer": answer_problem, "answer_start": start_problem, "tools": _tools,
    "chat_template_kwargs": _template_kwargs,
}  # fmt: skip
"""Role -> a function that says what is wrong with a value, or None."""

LABEL_CHECKS: Mapping[str, Callable[[Any], str | None]] = {
    SINGLE_LABEL: _class, MULTI_LABEL: _labels, REGRESSION: _number,
}  # fmt: skip
"""Problem type -> the check of a label."""


def _as_list(value: Any) -> Any:
    found = written_list(value) if isinstance(value, str) else None
    return value if found is None else found


READERS: Mapping[str, Callable[[Any], Any]] = {
    "messages": as_chat,
    **dict.fromkeys(("prompt", "completion", "chosen", "rejected"), as_messages),
    **dict.fromkeys(("tokens", "tags"), _as_list),
    **dict.fromkeys(("tools", "chat_template_kwargs"), from_json_text),
}
"""Role -> how its values are read where files have them in several shapes."""

OPTIONAL_ROLES = frozenset({"input", "tools", "chat_template_kwargs"})
"""Roles that a row may lack although its file has the column."""

TARGET_ROLES = frozenset(
    {
        "label", "tags", "completion", "chosen", "rejected", "summary", "target", "answers", "answer", "answer_start",
        "score",
    }
)  # fmt: skip
"""Roles that hold what is to be predicted; all others are what the model is given."""


def half_character(value: Any) -> str | None:
    """What is wrong with a value that holds a lone surrogate (``"\\ud83d"``): no tokenizer and no file takes it."""
    if isinstance(value, str):
        whole = value.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in value)
        return None if whole else "holds half of a character, a lone surrogate; it was cut within an emoji, mostly"
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return next((problem for part in parts if (problem := half_character(part))), None)


def row_problem(values: Mapping[str, Any]) -> str | None:
    """What is wrong between a row's values: tokens and tags of different length, answers that aren't there."""
    if "context" in values:
        return misplaced(values)
    if "tokens" in values and "tags" in values and len(values["tokens"]) != len(values["tags"]):
        return f"{len(values['tokens'])} tokens but {len(values['tags'])} tags"
    replies = [role for role in ("completion", "chosen", "rejected") if role in values]
    # A prompt that is a text may stand before messages: it is then the user's first, or repeats it.
    return same_kind(values, replies if "chosen" in values else ["prompt", *replies])
