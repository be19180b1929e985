"""Parts of the backbone's body that a task model is made without, such as BERT's pooler in tagging."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def parts_left_out(own: Any, body: Any) -> frozenset[str]:
    """The children of the backbone's body that a task model's own is made without."""
    return frozenset(name for name, _ in body.named_children() if getattr(own, name, body) is None)


def leave_out(parts: Iterable[str], body: Any) -> None:
    """Take parts out of a body that isn't shared, as they are out of the task model that an adapter was trained in.

    PEFT would look for the adapter's tensors there, and some of its passes read whatever the body returns last.
    """
    for name in parts:
        setattr(body, name, None)
