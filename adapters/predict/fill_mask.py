"""Fill-mask: the likeliest tokens for each mask, read by transformers' own pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from lorary.adapters.arguments import whole_number
from lorary.adapters.predict.base import Row, Setting, open_pipeline, post_parameters, read_text
from lorary.hub.errors import UsageError


class FillMaskRows:
    """``[{"score", "token", "token_str", "sequence"}]``, the ``top_k`` (5) best; for several masks one such list each.

    ``targets``: score these words only, each by its first token.
    """

    parameters: ClassVar = frozenset({"top_k", "targets"})

    def __init__(self, setting: Setting, params: Mapping[str, Any]) -> None:
        from transformers import FillMaskPipeline

        if setting.tokenizer.mask_token_id is None:
            raise UsageError("this backbone's tokenizer has no mask token, so there is nothing to fill")
        model, preprocessing = setting.model, setting.preprocessing
        self._pipeline = open_pipeline(FillMaskPipeline, setting)
        self._columns, self._prefix, self._limit = preprocessing.columns, preprocessing.prefix, setting.limit
        self._mask, self._mask_id = setting.tokenizer.mask_token, setting.tokenizer.mask_token_id
        if params.get("top_k") is not None:
            whole_number("top_k", params["top_k"], most=model.config.vocab_size)
        self._post = post_parameters(self._pipeline, params)

    def encode(self, row: Row) -> list[dict[str, Any]]:
        """Tokenize a text that holds at least one mask token."""
        from transformers.pipelines.base import PipelineException

        text, _ = read_text(row, self._columns)
        settings = {"truncation": True, "max_length": self._limit}
        try:
            piece = dict(self._pipeline.preprocess(self._prefix + text, tokenizer_kwargs=settings))
        except PipelineException as error:
            raise UsageError(
                f"a row has no {self._mask} within its first {self._limit} tokens, so there is nothing to fill"
            ) from error

        return [piece | {"asked": (piece["input_ids"][0] == self._mask_id).nonzero().flatten()}]

    def decode(self, pieces: list[dict[str, Any]], logits: list[torch.Tensor]) -> Any:
        """The pipeline's reading of [tokens, vocabulary] logits, or of those of the masks."""
        (piece,), (own,) = pieces, logits
        tokens = piece["input_ids"].shape[1]
        if len(own) != tokens:
            own = own.new_zeros(tokens, own.shape[1]).index_copy_(0, piece["asked"], own)
        return self._pipeline.postprocess({"input_ids": piece["input_ids"], "logits": own.unsqueeze(0)}, **self._post)
