"""How likely the tokens of a text were, in the shapes of OpenAI's two paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_LEAST = -9999.0  # for what is impossible: JSON has no number for it, and vLLM writes this one


@dataclass(frozen=True)
class ToldToken:
    """A token as its text, where in the answer that begins, and the likeliest ones that might have stood there."""

    text: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...]
    begin: int


def of_text(tokens: Sequence[ToldToken]) -> dict[str, Any]:
    """``/v1/completions``: lists beside each other; the chosen token is always one of its ``top_logprobs``."""
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_number(token.logprob) for token in tokens],
        "top_logprobs": [_by_text(token) for token in tokens],
        "text_offset": [token.begin for token in tokens],
    }


def of_chat(tokens: Sequence[ToldToken]) -> dict[str, Any]:
    """``/v1/chat/completions``: a mapping for each token."""
    return {
        "content": [
            _entry(token.text, token.logprob) | {"top_logprobs": [_entry(*one) for one in token.likeliest]}
            for token in tokens
        ],
        "refusal": None,
    }


def _by_text(token: ToldToken) -> dict[str, float]:
    found = {token.text: _number(token.logprob)}
    for text, logprob in token.likeliest:
        found.setdefault(text, _number(logprob))  # the likelier one of two that are written alike
    return found


def _entry(text: str, logprob: float) -> dict[str, Any]:
    # The bytes of an unfinished character are none that its text would give.
    own = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": _number(logprob), "bytes": own}


def _number(logprob: float) -> float:
    return max(logprob, _LEAST)
