"""Texts of a given structure from transformers' ``generate``, each row by itself."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lorary.adapters.text.settings import STRUCTURES, assistant_of, end_tokens, setting
from lorary.adapters.text.structure import Beginning, Structure, read_structure
from lorary.hub.errors import UsageError


class Structures:
    """What the texts of a batch's rows have to match: a logits processor and a stopping criterion of transformers.

    Args:
        beginnings: a row's each; of a prompt's several texts all begin with the same.
        stop_tokens: those that end a text.
    """

    def __init__(self, beginnings: Sequence[Beginning], stop_tokens: Sequence[int]) -> None:
        self._beginnings = beginnings
        self._stop_tokens = stop_tokens
        self._rows: list[Structure] = []
        self.lengths: dict[int, int] = {}  # tokens of the texts that were complete, by their rows
        self._prompt_tokens = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [rows, vocabulary], minus infinity for what can't follow ``input_ids`` [rows, tokens].

        Raises:
            ValueError: no token can follow, or what a row's structure itself has against its text.
        """
        if not self._rows:
            self._prompt_tokens = input_ids.shape[1]
            each = len(input_ids) // len(self._beginnings)
            beginnings = [beginning.copy() for beginning in self._beginnings for _ in range(each)]
            self._rows = [Structure(one, self._prompt_tokens, self._stop_tokens) for one in beginnings]
        rows = [row(input_ids[[place]], scores[[place]]) for place, row in enumerate(self._rows)]
        if any(bool(row.isneginf().all()) for row in rows):
            raise ValueError(
                "other settings forbid all that may follow in the text's structure; leave some of them out"
            )
        return torch.cat(rows)

    def ended(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """Whose text is complete, [rows]."""
        texts = input_ids[:, self._prompt_tokens :].tolist()
        ended = [row.ends(text) for row, text in zip(self._rows, texts, strict=True)]
        for place in (place for place, end in enumerate(ended) if end):
            self.lengths.setdefault(place, len(texts[place]))
        return torch.tensor(ended, device=input_ids.device)


def with_structures(
    kwargs: Mapping[str, Any], own: Mapping[str, Any], base: Any, tokenizers: Sequence[Any], tokenizing: threading.Lock
) -> tuple[dict[str, Any], Mapping[int, int]]:
    """A call's arguments as transformers takes them: ``schema`` and ``regex`` as a processor and a criterion.

    And where texts are going to end by these: what follows in their rows is padding.

    Args:
        kwargs: the call's.
        own: what holds where the call doesn't say.
        base: the model's generation_config.
        tokenizers: of the rows.
        tokenizing: as of :func:`read_structure`.

    Raises:
        UsageError: beams, or another decoder that drafts the text; as :func:`read_structure`.
        MissingDependencyError: llguidance isn't installed.
    """
    plain = {name: value for name, value in kwargs.items() if name not in STRUCTURES}
    asked = {name: kwargs.get(name) for name in STRUCTURES}
    if all(value is None for value in asked.values()):
        return plain, {}
    settings = {**own, **plain}
    if (setting("num_beams", settings, base) or 1) > 1 or assistant_of(settings, base) is not None:
        raise UsageError("schema and regex: a text of a structure is written token by token; pass num_beams=1")
    ends = end_tokens(settings, base)
    if not ends and (setting("num_return_sequences", settings, base) or 1) > 1:
        raise UsageError("schema and regex: no token ends this base's texts, so a prompt has one; ask several times")
    structures = Structures([_beginning(tokenizer, tokenizing, asked) for tokenizer in tokenizers], ends)
    processors, criteria = plain.get("logits_processor") or [], plain.get("stopping_criteria") or []
    plain |= {"logits_processor": [*processors, structures], "stopping_criteria": [*criteria, structures.ended]}
    return plain, structures.lengths


def _beginning(tokenizer: Any, tokenizing: threading.Lock, asked: Mapping[str, Any]) -> Beginning:
    beginning = read_structure(tokenizer, tokenizing, **asked)
    assert beginning is not None
    return beginning
