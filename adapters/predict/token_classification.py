"""Token classification (tagging), read by transformers' own pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import torch

from lorary.adapters.predict.base import Row, Setting, open_pipeline, post_parameters
from lorary.hub.errors import UsageError


@cache
def _pipeline_class() -> Any:
    """transformers' pipeline, which knows B- and I- alone, with the other tags of IOBES and BILOU."""
    from transformers import TokenClassificationPipeline

    class Pipeline(TokenClassificationPipeline):
        def get_tag(self, entity_name: str) -> tuple[str, str]:
            """B- and I- and their kin: a single word begins an entity, its last word goes on with it."""
            begins, goes_on = ("S-", "U-"), ("E-", "L-")
            if entity_name.startswith((*begins, *goes_on)):
                return ("B" if entity_name.startswith(begins) else "I"), entity_name[2:]
            found: tuple[str, str] = super().get_tag(entity_name)
            return found

    return Pipeline


class TokenClassificationRows:
    """A list of entities per row; ``aggregation_strategy`` as the pipeline's (``none`` unless given).

    A text that is longer than the adapter's limit is tagged in windows that overlap by a quarter, or by the manifest's
    ``stride``; nothing is dropped.
    """

    parameters: ClassVar = frozenset({"aggregation_strategy", "ignore_labels"})

    def __init__(self, setting: Setting, params: Mapping[str, Any]) -> None:
        preprocessing = setting.preprocessing
        self._pipeline = open_pipeline(_pipeline_class(), setting)
        self._column, self._limit = preprocessing.columns.get("tokens", "tokens"), setting.limit
        if self._limit is not None:
            self._stride = self._limit // 4 if preprocessing.stride is None else preprocessing.stride
            room = self._limit - setting.tokenizer.num_special_tokens_to_add()
            if self._stride >= room:
                raise UsageError(
                    f"windows of {self._limit} tokens have room for {room} of a text, and can't overlap by "
                    f"{self._stride}; raise the manifest's preprocessing.max_length, or lower its stride"
                )
        self._post = post_parameters(self._pipeline, params)

    def encode(self, row: Row) -> list[dict[str, Any]]:
        """Tokenize a text, or a list of words as the adapter was trained on."""
        if isinstance(row, Mapping):
            row = self._find(row)
        words = not isinstance(row, str)
        if words and not (isinstance(row, Sequence) and all(isinstance(word, str) for word in row)):
            raise UsageError(f"expected a text or a list of words, found {type(row).__name__}")
        settings: dict[str, Any] = {"max_length": self._limit}
        if self._limit is not None:
            settings |= {"return_overflowing_tokens": True, "stride": self._stride, "padding": True}
        windows = self._pipeline.preprocess(
            list(row) if words else row, is_split_into_words=words, delimiter=" ", tokenizer_params=settings
        )
        # A text without a token has no entities; some tokenizers add none of their own.
        return [dict(window) for window in windows if window["input_ids"].numel()]

    def _find(self, row: Mapping[str, Any]) -> Any:
        found = row.get("tokens", row.get(self._column, row.get("text")))
        if found is None:
            raise UsageError(
                f"a row has no words: expected a column {self._column!r}, found {', '.join(map(str, row)) or 'nothing'}"
            )
        return found

    def decode(self, pieces: list[dict[str, Any]], logits: list[torch.Tensor]) -> Any:
        """The pipeline's reading of [tokens, classes] logits, window by window."""
        outputs = [{**piece, "logits": own.unsqueeze(0)} for piece, own in zip(pieces, logits, strict=True)]
        return self._pipeline.postprocess(outputs, **self._post) if outputs else []
