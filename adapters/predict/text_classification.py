"""Text classification: single-label, multi-label and regression, read by transformers' own pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from lorary.adapters.predict.base import Row, Setting, device_of, post_parameters, read_text


class TextClassificationRows:
    """``[{"label", "score"}]``: the best label of a row, or the ``top_k`` best (all with None).

    Scores are softmax for one label of several, sigmoid for several at once (or a single logit), and the logit itself
    for regression, as the head's ``problem_type`` says; ``function_to_apply`` overrides it.
    """

    parameters: ClassVar = frozenset({"top_k", "function_to_apply"})

    def __init__(self, setting: Setting, params: Mapping[str, Any]) -> None:
        from transformers import TextClassificationPipeline

        model, preprocessing = setting.model, setting.preprocessing
        self._pipeline = TextClassificationPipeline(model=model, tokenizer=setting.tokenizer, device=device_of(model))
        self._columns, self._prefix, self._limit = preprocessing.columns, preprocessing.prefix, setting.limit
        self._post = post_parameters(self._pipeline, params)

    def encode(self, row: Row) -> list[dict[str, Any]]:
        """Tokenize a text, or a pair given as ``{"text", "text_pair"}`` or under the adapter's own column names."""
        text, pair = read_text(row, self._columns)
        texts = {"text": self._prefix + text} | ({"text_pair": pair} if pair is not None else {})
        return [dict(self._pipeline.preprocess(texts, truncation=True, max_length=self._limit))]

    def decode(self, pieces: list[dict[str, Any]], logits: list[torch.Tensor]) -> Any:
        """The pipeline's reading of [classes] logits."""
        return self._pipeline.postprocess({"logits": logits[0].unsqueeze(0)}, **self._post)
