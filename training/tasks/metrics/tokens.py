"""Language modelling's figures: what a model makes of the tokens that it has to predict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorary.training.fitting.losses import IGNORED


@dataclass(frozen=True)
class TokenScore:
    """A row's negative log-likelihood (nats) summed over its trained tokens, their number, and how many were top-1."""

    loss: float
    tokens: int
    correct: int

    @property
    def told(self) -> str:
        """The score for people."""
        perplexity = math.exp(min(self.loss / max(1, self.tokens), 700.0))
        return f"{self.correct} of {self.tokens} tokens, perplexity {perplexity:.4g}"


def score_tokens(logits: torch.Tensor, labels: torch.Tensor) -> TokenScore:
    """The score of logits [tokens, vocabulary] against labels [tokens]; ignored ones don't count."""
    learned = labels != IGNORED
    rows, targets = logits[learned].float(), labels[learned]
    loss = torch.nn.functional.cross_entropy(rows, targets, reduction="sum")
    return TokenScore(float(loss), len(targets), int((rows.argmax(-1) == targets).sum()))


def token_metrics(scores: Sequence[Any]) -> dict[str, float]:
    """Mean loss per predicted token (nats), its exponential (perplexity), and the share of tokens that were top-1."""
    tokens = max(1, sum(score.tokens for score in scores))
    loss = sum(score.loss for score in scores) / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "token_accuracy": sum(score.correct for score in scores) / tokens,
    }


def unigram(
    train: Iterable[Sequence[int]], rows: Iterable[dict[str, Any]], vocabulary: int, without: Sequence[int] = ()
) -> dict[str, float]:
    """The metrics of knowing nothing but how often each token occurs in training, with one added to each count.

    Its token accuracy is that of always answering the most frequent token.

    Args:
        train: the training rows' token ids, :data:`IGNORED` where one isn't learned.
        rows: the held-out features; their labels are predicted.
        vocabulary: how many tokens there are.
        without: tokens that are never asked for.
    """
    counts = torch.ones(vocabulary, dtype=torch.float64)
    for ids in train:
        learned = torch.as_tensor(ids)
        counts += torch.bincount(learned[learned != IGNORED], minlength=vocabulary)
    counts[list(without)] = 0
    logarithms = (counts / counts.sum()).log()
    most = int(counts.argmax())
    scores = []
    for feature in rows:
        labels = torch.as_tensor(feature["labels"])
        targets = labels[labels != IGNORED]
        scores.append(TokenScore(float(-logarithms[targets].sum()), len(targets), int((targets == most).sum())))
    return token_metrics(scores)
