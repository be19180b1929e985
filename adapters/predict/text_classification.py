"""Text classification: single-label, multi-label and regression, read by transformers' own pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from lorary.adapters.predict.base import Row, Setting, open_pipeline, post_parameters, read_text
from lorary.hub.errors import UsageError
from lorary.hub.manifest import REGRESSION

THRESHOLD = 0.5
"""From which score on a row has a label, where it may have several and the adapter has no thresholds of its own."""

OWN = "own"
"""The value of ``threshold`` that asks for the adapter's own ones."""


class TextClassificationRows:
    """``[{"label", "score"}]``: the best label of a row, or the ``top_k`` best (all with None).

    Scores are softmax for one label of several, sigmoid for several at once (or a single logit), and the logit itself
    for regression, as the head's ``problem_type`` says; ``function_to_apply`` overrides it. With ``threshold``, which
    the pipeline doesn't have: all labels with at least this score, best first. ``threshold="own"`` reads the labels as
    a multi-label adapter was measured: each from its own score on, which the manifest holds (:data:`THRESHOLD` where it
    holds none).
    """

    parameters: ClassVar = frozenset({"top_k", "function_to_apply", "threshold"})

    def __init__(self, setting: Setting, params: Mapping[str, Any]) -> None:
        from transformers import TextClassificationPipeline

        preprocessing = setting.preprocessing
        self._pipeline = open_pipeline(TextClassificationPipeline, setting)
        self._columns, self._prefix, self._limit = preprocessing.columns, preprocessing.prefix, setting.limit
        self._threshold = self._read_threshold(params.get("threshold"), setting.thresholds)
        others = {name: value for name, value in params.items() if name != "threshold"}
        if self._threshold is not None:
            others = {"top_k": None, **others}
        self._post = post_parameters(self._pipeline, others)

    def _read_threshold(self, value: Any, own: tuple[float, ...] | None) -> Mapping[str, float] | None:
        """By label, from which score on it is an answer; None: what the pipeline answers."""
        if value is None:
            return None
        config = self._pipeline.model.config
        labels = [config.id2label[index] for index in range(config.num_labels)]
        if config.problem_type == REGRESSION:
            raise UsageError(f"threshold={value!r}: the adapter answers with a number ({REGRESSION}), not with labels")
        if value == OWN:
            return dict(zip(labels, own or [THRESHOLD] * len(labels), strict=True))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UsageError(f"threshold={value!r}: expected a number from 0 to 1, or {OWN!r}")
        return dict.fromkeys(labels, float(value))

    def encode(self, row: Row) -> list[dict[str, Any]]:
        """Tokenize a text, or a pair given as ``{"text", "text_pair"}`` or under the adapter's own column names.

        Raises:
            UsageError: it is a pair and the adapter was trained on single texts, or the other way round. One that
                doesn't say what it was trained on takes both.
        """
        text, pair = read_text(row, self._columns)
        if self._columns and (pair is not None) != ("text_pair" in self._columns):
            raise UsageError(
                "a row is a single text, and this adapter was trained on pairs; pass {text, text_pair}"
                if pair is None
                else "a row has a text_pair, and this adapter was trained on single texts; leave it out"
            )
        texts = {"text": self._prefix + text} | ({"text_pair": pair} if pair is not None else {})
        return [dict(self._pipeline.preprocess(texts, truncation=True, max_length=self._limit))]

    def decode(self, pieces: list[dict[str, Any]], logits: list[torch.Tensor]) -> Any:
        """The pipeline's reading of [classes] logits."""
        answer = self._pipeline.postprocess({"logits": logits[0].unsqueeze(0)}, **self._post)
        least = self._threshold
        return answer if least is None else [one for one in answer if one["score"] >= least[one["label"]]]
