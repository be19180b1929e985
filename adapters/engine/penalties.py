"""OpenAI's penalties by frequency and presence, and its biases, which an engine's requests may have too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from lorary.adapters.arguments import is_number, is_whole, shown
from lorary.hub.errors import UsageError

PENALTIES = ("frequency_penalty", "presence_penalty", "logit_bias")
"""What a request may have of OpenAI's, by its names."""

MOST_PENALTY = 2
"""A penalty is a number from -2 to 2."""

MOST_BIAS = 100
"""A bias is a number from -100 (hardly ever) to 100 (hardly anything else)."""

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes token ids [rows, tokens] and their next scores [rows, vocabulary], and may write to the latter."""


class TokenBias:
    """Adds numbers to the scores of tokens.

    Not transformers' ``SequenceBiasLogitsProcessor``: it adds a number to each token of the vocabulary, and lays them
    out in its first step, where everybody waits.

    Args:
        biases: of each token.
        device: where the scores are.
    """

    def __init__(self, biases: Mapping[int, float], device: torch.device) -> None:
        self._tokens = torch.tensor(list(biases), device=device)
        self._biases = torch.tensor(list(biases.values()), dtype=torch.float32, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """As a :data:`Processor`."""
        return scores.index_add_(1, self._tokens, self._biases.to(scores.dtype).expand(len(scores), -1))


class UsedPenalty:
    """Takes from the scores of tokens that were generated: ``frequency`` for each time, and ``presence`` once.

    The prompt doesn't count, in OpenAI's as in vLLM's; transformers' ``repetition_penalty`` counts it.

    Args:
        prompt_tokens: how many tokens of a row are its prompt.
        frequency: so much for each time.
        presence: so much once.
    """

    def __init__(self, prompt_tokens: int, frequency: float, presence: float) -> None:
        self._prompt_tokens = prompt_tokens
        self._frequency = frequency
        self._presence = presence

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """As a :data:`Processor`. It is counted anew each time: requests that give way to others begin anew."""
        made = input_ids[:, self._prompt_tokens :]
        counts = torch.zeros_like(scores).scatter_add_(1, made, torch.ones_like(made, dtype=scores.dtype))
        # Read and written where a token was made alone; one that was made twice is written twice, and the same.
        taken = self._frequency * counts.gather(1, made) + self._presence
        return scores.scatter_(1, made, scores.gather(1, made) - taken)


def plan_penalties(
    settings: Mapping[str, Any], prompt_tokens: int, vocabulary: int, device: torch.device
) -> tuple[list[Processor], list[Processor]]:
    """The processors of a request's :data:`PENALTIES`: those that come before transformers' own, and those after.

    After vLLM, where biases come before ``repetition_penalty``, which multiplies what they have made of a score, and
    the penalties after it; all of them come before temperature and what is cut off. What asks for nothing has none.

    Args:
        settings: a request's, of which other names are passed over.
        prompt_tokens: how many tokens its prompt has.
        vocabulary: how many tokens there are to name.
        device: where scores are.

    Raises:
        UsageError: a penalty isn't from -2 to 2, a bias isn't from -100 to 100, or there is no such token.
    """
    frequency, presence = (_penalty(name, settings.get(name)) for name in ("frequency_penalty", "presence_penalty"))
    biases = _biases(settings.get("logit_bias"), vocabulary)
    before: list[Processor] = [TokenBias(biases, device)] if biases else []
    after: list[Processor] = [UsedPenalty(prompt_tokens, frequency, presence)] if frequency or presence else []
    return before, after


def _penalty(name: str, value: Any) -> float:
    if value is None:
        return 0.0
    if not is_number(value) or abs(value) > MOST_PENALTY:
        raise UsageError(f"{name}={shown(value)}: expected a number from -{MOST_PENALTY} to {MOST_PENALTY}")
    return float(value)


def _biases(given: Any, vocabulary: int) -> dict[int, float]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UsageError(f"logit_bias={shown(given)}: expected a mapping of token ids to numbers")
    for token, bias in given.items():
        if not is_whole(token) or not 0 <= token < vocabulary:
            raise UsageError(f"logit_bias: token {shown(token)}: expected an id from 0 to {vocabulary - 1}")
        if not is_number(bias) or abs(bias) > MOST_BIAS:
            raise UsageError(
                f"logit_bias: {shown(bias)} for token {token}: expected a number from -{MOST_BIAS} to {MOST_BIAS}"
            )
    return {int(token): float(bias) for token, bias in given.items()}
