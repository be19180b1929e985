"""Running a backbone for the rows of one call: predictions, text and logits, each row with its own adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorary.adapters.forward import forward_rows
from lorary.adapters.generate import PromptRow, decode_new, encode_prompts, pad_id
from lorary.adapters.predict import Row, row_predictor
from lorary.adapters.routing import Routing, routed
from lorary.hub.errors import UsageError

_MODEL_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_NO_LIMIT = 1_000_000  # tokenizers without a limit state an astronomic one


def can_generate(model: Any) -> bool:
    """Has the model a language-modelling head?"""
    return hasattr(model, "can_generate") and bool(model.can_generate())


def _unpad(logits: torch.Tensor, piece: dict[str, Any], padded: int) -> torch.Tensor:
    """Per-token logits without their padding (a classifier's have none), float32 on the CPU."""
    per_token = logits.ndim == 2 and logits.shape[0] == padded
    return (logits[: piece["input_ids"].shape[1]] if per_token else logits).float().cpu()


@dataclass(frozen=True)
class Inference:
    """A backbone's model (with its language-modelling head, if any), body and tokenizer (None: token ids only)."""

    model: Any
    body: Any
    tokenizer: Any
    device: torch.device

    def predict(self, rows: Sequence[Row], routing: Routing, params: dict[str, Any]) -> list[Any]:
        """One prediction per row, in the shape that the row's task gives it."""
        generating = [adapter is not None and adapter.task == "text-generation" for adapter in routing.adapters]
        if any(generating):
            if not all(generating):
                raise UsageError(
                    "text-generation rows can't share a predict call with rows of other tasks; call generate for them"
                )
            texts = self.generate([str(row) for row in rows], routing, params)
            return [[{"generated_text": f"{row}{text}"}] for row, text in zip(rows, texts, strict=True)]
        predictors = {
            adapter: row_predictor(adapter, self.tokenizer, self.max_length, params)
            for adapter in set(routing.adapters)
        }
        own = [predictors[adapter] for adapter in routing.adapters]
        encoded = [predictor.encode(row) for predictor, row in zip(own, rows, strict=True)]
        # A row that is too long comes as several pieces; each is a row of the batch, with its row's adapter.
        owners = [index for index, pieces in enumerate(encoded) for _ in pieces]
        batch = self._pad([piece for pieces in encoded for piece in pieces])
        outputs = iter(forward_rows(self.body, batch, routing.subset(owners)))
        padded = batch["input_ids"].shape[1]
        return [
            predictor.decode(pieces, [_unpad(next(outputs), piece, padded) for piece in pieces])
            for predictor, pieces in zip(own, encoded, strict=True)
        ]

    def generate(self, prompts: Sequence[PromptRow], routing: Routing, kwargs: dict[str, Any]) -> list[str]:
        """The new text of each prompt (``num_return_sequences`` of them in a row, where that is given)."""
        if not can_generate(self.model):
            raise UsageError(
                f"{type(self.model).__name__} has no language-modelling head; "
                "open a causal or sequence-to-sequence base to generate"
            )
        if self.tokenizer is None:
            raise UsageError("this backbone was loaded without a tokenizer; pass one to Backbone.from_model")
        encoder_decoder = bool(self.model.config.is_encoder_decoder)
        batch = encode_prompts(prompts, routing.adapters, self.tokenizer, encoder_decoder=encoder_decoder)
        inputs = {name: tensor.to(self.device) for name, tensor in batch.items()}
        with torch.no_grad(), routed(routing):
            sequences = self.model.generate(**inputs, **{"pad_token_id": pad_id(self.tokenizer)} | kwargs)
        return decode_new(sequences, 0 if encoder_decoder else inputs["input_ids"].shape[1], self.tokenizer)

    def logits(self, row: Sequence[int], routing: Routing) -> torch.Tensor:
        """The logits of one token row (:meth:`lorary.adapters.Backbone.logits` says of what shape)."""
        adapter = routing.adapters[0]
        if adapter is not None and adapter.head is not None:
            return forward_rows(self.body, self._token_ids(row), routing)[0].float().cpu()
        if self.model is self.body:
            return forward_rows(self.body, self._token_inputs(row), routing)[0].float().cpu()
        logits: torch.Tensor = self.run(row, routing).logits[0]
        return logits.float().cpu()

    def run(self, row: Sequence[int], routing: Routing | None) -> Any:
        """The model's own output for one token row; no routing means the bare backbone."""
        with torch.no_grad(), routed(routing):
            return self.model(**self._token_inputs(row))

    def _token_ids(self, row: Sequence[int]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([list(row)], device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _token_inputs(self, row: Sequence[int]) -> dict[str, torch.Tensor]:
        inputs = self._token_ids(row)
        if self.model.config.is_encoder_decoder:
            start = self.model.config.decoder_start_token_id or 0
            inputs["decoder_input_ids"] = torch.full((1, 1), start, device=self.device)
        return inputs

    def _pad(self, encoded: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [{name: row[name][0] for name in row if name in _MODEL_INPUTS} for row in encoded]
        batch = self.tokenizer.pad(rows, padding=True, padding_side="right", return_tensors="pt")
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    @property
    def max_length(self) -> int | None:
        """The most tokens that the model and the tokenizer take, None where neither says."""
        limits = (
            getattr(self.model.config, "max_position_embeddings", None),
            getattr(self.tokenizer, "model_max_length", None),
        )
        return min((limit for limit in limits if limit and limit < _NO_LIMIT), default=None)
