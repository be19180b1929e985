"""Texts of a given structure from transformers' ``generate``, each row by itself."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lorary.adapters.text.settings import STRUCTURES, assistant_of, end_tokens, listed_tokens, setting
from lorary.adapters.text.structure import Beginning, Structure, read_structure
from lorary.hub.errors import UsageError

_FORCED = ("forced_bos_token_id", "forced_eos_token_id")


class Structures:
    """What the texts of a batch's rows have to match: a logits processor and a stopping criterion of transformers.

    A row that has ended goes on with padding until all have, of which its structure knows nothing.

    Args:
        beginnings: a row's each; of a prompt's several texts all begin with the same.
        stop_tokens: those that end a text.
        forced: tokens that some bases have before a text, or at the end of one that is cut off; they are none of it.
    """

    def __init__(self, beginnings: Sequence[Beginning], stop_tokens: Sequence[int], forced: Sequence[int] = ()) -> None:
        self._beginnings = beginnings
        self._stop_tokens = stop_tokens
        self._forced = forced
        self._rows: list[Structure] = []
        self._chosen_from: dict[int, torch.Tensor] = {}  # the last scores of the rows that haven't ended
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
            self._chosen_from = dict(enumerate(scores))
        else:
            self._leave_ended(input_ids[:, -1].tolist())
        return torch.cat([self._scores(place, input_ids[[place]], scores[[place]]) for place in range(len(scores))])

    def ended(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """Whose text is complete, [rows]."""
        for place in self._chosen_from.keys() - self.lengths.keys():
            text = input_ids[place, self._prompt_tokens :].tolist()
            if self._may_take(place, text[-1]) and self._rows[place].ends(text):
                self.lengths[place] = len(text)
        return torch.tensor([place in self.lengths for place in range(len(self._rows))], device=input_ids.device)

    def _leave_ended(self, tokens: Sequence[int]) -> None:
        """Have done with the rows that have ended, by their structure, a token or otherwise."""
        for place in tuple(self._chosen_from):
            token = tokens[place]
            if place in self.lengths or token in self._stop_tokens or not self._may_take(place, token):
                del self._chosen_from[place]

    def _may_take(self, place: int, token: int) -> bool:
        """Can this token have been chosen? Else it is padding."""
        return not bool(self._chosen_from[place][token].isneginf())

    def _scores(self, place: int, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if place not in self._chosen_from:
            return scores
        if self._is_forced(scores[0]):
            self._rows[place].skip(ids.shape[1] - self._prompt_tokens)
        else:
            scores = self._rows[place](ids, scores)
            if bool(scores.isneginf().all()):
                raise ValueError(
                    "other settings forbid all that may follow in the text's structure; leave some of them out"
                )
        self._chosen_from[place] = scores[0]
        return scores

    def _is_forced(self, scores: torch.Tensor) -> bool:
        """Is there nothing but forced tokens that may follow?"""
        return bool(self._forced) and set() < {*scores.isfinite().nonzero().flatten().tolist()} <= {*self._forced}


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
    forced = [token for name in _FORCED for token in listed_tokens(setting(name, settings, base))]
    structures = Structures([_beginning(tokenizer, tokenizing, asked) for tokenizer in tokenizers], ends, forced)
    processors, criteria = plain.get("logits_processor") or [], plain.get("stopping_criteria") or []
    plain |= {"logits_processor": [*processors, structures], "stopping_criteria": [*criteria, structures.ended]}
    return plain, structures.lengths


def _beginning(tokenizer: Any, tokenizing: threading.Lock, asked: Mapping[str, Any]) -> Beginning:
    beginning = read_structure(tokenizer, tokenizing, **asked)
    assert beginning is not None
    return beginning
