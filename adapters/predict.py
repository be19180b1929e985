"""Predictions in the shapes of ``transformers.pipeline``, each row prepared and read the way its adapter was trained.

Tokenizing and decoding are transformers' own pipelines; what lies between is one pass over a mixed batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from lorary.adapters.adapter import Adapter
from lorary.hub.errors import UnsupportedAdapterError, UsageError
from lorary.hub.manifest import Preprocessing

Row = str | Mapping[str, Any] | Sequence[str]


class RowPredictor(Protocol):
    """How the rows of one adapter are encoded, and what its logits mean."""

    def encode(self, row: Row) -> list[dict[str, Any]]:
        """A row's pieces, one unless it is too long: tensors, each [1, tokens], and what decoding needs besides."""

    def decode(self, pieces: list[dict[str, Any]], logits: list[torch.Tensor]) -> Any:
        """A row's prediction from its pieces' logits (padding removed)."""


def row_predictor(
    adapter: Adapter | None, tokenizer: Any, max_length: int | None, params: dict[str, Any]
) -> RowPredictor:
    """The predictor for an adapter's rows; None is the bare backbone, whose answer is its hidden states.

    Args:
        adapter: a loaded adapter.
        tokenizer: the backbone's.
        max_length: the most tokens that the backbone takes, where the adapter sets no limit of its own.
        params: the pipeline's own call parameters (``top_k``, ``aggregation_strategy``, ...).

    Raises:
        UnsupportedAdapterError: the adapter's task has no predictor.
        UsageError: a parameter that the task's pipeline doesn't take.
    """
    if tokenizer is None:
        raise UsageError("this backbone was loaded without a tokenizer; pass one to Backbone.from_model")
    preprocessing = adapter.manifest.preprocessing if adapter and adapter.manifest else Preprocessing()
    limit = preprocessing.max_length or max_length
    if adapter is None or adapter.task == "feature-extraction":
        _demand_known(params, frozenset())
        return FeatureRows(tokenizer, preprocessing, limit)
    if adapter.head is None:
        raise UnsupportedAdapterError(f"{adapter.name!r} ({adapter.task}) has no head to predict with; use generate")
    if adapter.task == "text-classification":
        return TextClassificationRows(adapter.head.model, tokenizer, preprocessing, limit, params)
    if adapter.task == "token-classification":
        return TokenClassificationRows(adapter.head.model, tokenizer, preprocessing, limit, params)
    raise UnsupportedAdapterError(f"predict doesn't know the task {adapter.task!r} yet; use `using` for raw logits")


class TextClassificationRows:
    """``[{"label", "score"}]``: the best label of a row, or the ``top_k`` best (all with None)."""

    def __init__(
        self, model: Any, tokenizer: Any, preprocessing: Preprocessing, limit: int | None, params: dict[str, Any]
    ) -> None:
        from transformers import TextClassificationPipeline

        self._pipeline = TextClassificationPipeline(model=model, tokenizer=tokenizer, device=_device_of(model))
        self._columns, self._prefix, self._limit = preprocessing.columns, preprocessing.prefix, limit
        self._post = _post_parameters(self._pipeline, params, frozenset({"top_k", "function_to_apply"}))

    def encode(self, row: Row) -> list[dict[str, Any]]:
        """Tokenize a text, or a pair given as ``{"text", "text_pair"}`` or under the adapter's own column names."""
        text, pair = read_text(row, self._columns)
        texts = {"text": self._prefix + text} | ({"text_pair": pair} if pair is not None else {})
        return [dict(self._pipeline.preprocess(texts, truncation=True, max_length=self._limit))]

    def decode(self, pieces: list[dict[str, Any]], logits: list[torch.Tensor]) -> Any:
        """The pipeline's reading of [classes] logits."""
        return self._pipeline.postprocess({"logits": logits[0].unsqueeze(0)}, **self._post)


class TokenClassificationRows:
    """A list of entities per row; ``aggregation_strategy`` as the pipeline's (``none`` unless given).

    A text that is longer than the adapter's limit is tagged in windows that overlap by a quarter; nothing is dropped.
    """

    def __init__(
        self, model: Any, tokenizer: Any, preprocessing: Preprocessing, limit: int | None, params: dict[str, Any]
    ) -> None:
        from transformers import TokenClassificationPipeline

        self._pipeline = TokenClassificationPipeline(model=model, tokenizer=tokenizer, device=_device_of(model))
        self._columns, self._prefix, self._limit = preprocessing.columns, preprocessing.prefix, limit
        self._post = _post_parameters(self._pipeline, params, frozenset({"aggregation_strategy", "ignore_labels"}))

    def encode(self, row: Row) -> list[dict[str, Any]]:
        """Tokenize a text, or a list of words as the adapter was trained on."""
        if isinstance(row, Mapping):
            row = row[self._columns.get("tokens", "tokens")] if "tokens" not in row else row["tokens"]
        words = not isinstance(row, str)
        settings: dict[str, Any] = {"max_length": self._limit}
        if self._limit is not None:
            settings |= {"return_overflowing_tokens": True, "stride": self._limit // 4, "padding": True}
        windows = self._pipeline.preprocess(
            list(row) if words else row, is_split_into_words=words, delimiter=" ", tokenizer_params=settings
        )
        return [dict(window) for window in windows]

    def decode(self, pieces: list[dict[str, Any]], logits: list[torch.Tensor]) -> Any:
        """The pipeline's reading of [tokens, classes] logits, window by window."""
        outputs = [{**piece, "logits": own.unsqueeze(0)} for piece, own in zip(pieces, logits, strict=True)]
        return self._pipeline.postprocess(outputs, **self._post)


class FeatureRows:
    """A row's hidden states as nested lists, [1, tokens, hidden], as the feature-extraction pipeline gives them."""

    def __init__(self, tokenizer: Any, preprocessing: Preprocessing, limit: int | None) -> None:
        self._tokenizer, self._columns, self._prefix, self._limit = (
            tokenizer, preprocessing.columns, preprocessing.prefix, limit,
        )  # fmt: skip

    def encode(self, row: Row) -> list[dict[str, Any]]:
        """Tokenize a text."""
        text, _ = read_text(row, self._columns)
        return [
            dict(self._tokenizer(self._prefix + text, truncation=True, max_length=self._limit, return_tensors="pt"))
        ]

    def decode(self, pieces: list[dict[str, Any]], logits: list[torch.Tensor]) -> Any:
        """[tokens, hidden] as lists."""
        return [logits[0].tolist()]


def read_text(row: Row, columns: Mapping[str, str]) -> tuple[str, str | None]:
    """A row's text and its second text, from a string or from a mapping by role or by the adapter's own column names.

    Raises:
        UsageError: neither is there.
    """
    if isinstance(row, str):
        return row, None
    if not isinstance(row, Mapping):
        raise UsageError(f"expected a text or a mapping with 'text', found {type(row).__name__}")
    first, second = columns.get("text", "text"), columns.get("text_pair", "text_pair")
    text = row.get(first, row.get("text"))
    if not isinstance(text, str):
        raise UsageError(
            f"a row has no text: expected a column {first!r}, found {', '.join(map(str, row)) or 'nothing'}"
        )
    pair = row.get(second, row.get("text_pair"))
    return text, pair


def _post_parameters(pipeline: Any, params: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    _demand_known(params, known)
    try:
        post: dict[str, Any] = pipeline._sanitize_parameters(**params)[2]
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{type(pipeline).__name__} doesn't take {params}: {error}") from error
    return post


def _demand_known(params: dict[str, Any], known: frozenset[str]) -> None:
    """The pipelines pass over names that they don't know; a slip of the pen should be heard of."""
    unknown = sorted(params.keys() - known)
    if unknown:
        raise UsageError(f"predict doesn't take {', '.join(unknown)} here; known: {', '.join(sorted(known)) or 'none'}")


def _device_of(model: Any) -> torch.device:
    return next(parameter.device for parameter in model.parameters())
