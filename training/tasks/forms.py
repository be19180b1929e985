"""The two kinds of models that make one text of another: an encoder with a decoder, and a decoder alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from lorary.adapters.running.inference import decoder_start
from lorary.hub.errors import TrainingError
from lorary.training.fitting.evaluate import token_logits
from lorary.training.fitting.losses import IGNORED
from lorary.training.tasks.metrics.tokens import TokenScore, score_tokens

T5_KIN = ("t5", "mt5", "umt5", "longt5", "switch_transformers")
"""The ``model_type`` of T5 and what was made after it."""

Feature = dict[str, Any]
Collator = Callable[[list[Feature]], dict[str, torch.Tensor]]


class Form(Protocol):
    """How a model of a kind is given a text and what it shall make of it, both as token ids."""

    peft_task_type: str
    encoder_decoder: bool

    def feature(self, source: list[int], target: list[int]) -> Feature:
        """What the collator takes."""

    def widths(self, feature: Feature) -> tuple[int, ...]:
        """The tokens of each part of a row that a batch pads by itself."""

    def collator(self, tokenizer: Any) -> Collator:
        """Pads features to one batch; padding is never learned, a real end of text is."""

    def score(self, logits: torch.Tensor, feature: Feature) -> TokenScore:
        """The score of one row from its logits [tokens, vocabulary]."""

    def golden(self, model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The logits of bare token rows, as the loader computes them."""


class EncoderDecoder:
    """T5, BART and their kin: the encoder reads the text, the decoder learns the target."""

    peft_task_type = "SEQ_2_SEQ_LM"
    encoder_decoder = True

    def __init__(self, model: Any) -> None:
        self._model = model if hasattr(model, "prepare_decoder_input_ids_from_labels") else _Shifting(model.config)

    def feature(self, source: list[int], target: list[int]) -> Feature:
        """Text and target apart."""
        return {"input_ids": source, "attention_mask": [1] * len(source), "labels": target}

    def widths(self, feature: Feature) -> tuple[int, ...]:
        """The encoder's and the decoder's."""
        return len(feature["input_ids"]), len(feature["labels"])

    def collator(self, tokenizer: Any) -> Collator:
        """transformers' own; the model makes the decoder's inputs of the labels."""
        from transformers import DataCollatorForSeq2Seq

        return DataCollatorForSeq2Seq(tokenizer, model=self._model, label_pad_token_id=IGNORED)

    def score(self, logits: torch.Tensor, feature: Feature) -> TokenScore:
        """The decoder's inputs are shifted, so position i predicts target i."""
        return score_tokens(logits, torch.tensor(feature["labels"], device=logits.device))

    def golden(self, model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """With the few tokens that the loader gives a decoder to begin with."""
        device = next(model.parameters()).device
        found = []
        for row in rows:
            ids = torch.tensor([list(row)], device=device)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **decoder_start(model.config, ids)}
            found.append(_logits(model, inputs))
        return found


def demand_decoder(config: Any, dtype: torch.dtype) -> None:
    """Refuse an encoder-decoder that can't be trained as it is.

    Raises:
        TrainingError: its activations overflow in ``dtype``, or nobody knows what its decoder starts from.
    """
    if config.model_type in T5_KIN and dtype == torch.float16:
        raise TrainingError(
            f"dtype float16: the activations of {config.model_type!r} overflow in it (NaN); "
            "use dtype: bfloat16 or float32"
        )
    if config.decoder_start_token_id is None:
        raise TrainingError(
            f"the base's config has no decoder_start_token_id, so nobody knows what the decoder of "
            f"{config.model_type!r} starts from; set it in the base's config.json"
        )


class Causal:
    """A decoder alone: the text is the beginning of a row, only what follows it is learned."""

    peft_task_type = "CAUSAL_LM"
    encoder_decoder = False

    def feature(self, source: list[int], target: list[int]) -> Feature:
        """One row, of which the text's part isn't learned."""
        ids = source + target
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * len(source) + target}

    def widths(self, feature: Feature) -> tuple[int, ...]:
        """The row's."""
        return (len(feature["input_ids"]),)

    def collator(self, tokenizer: Any) -> Collator:
        """TRL's, which masks by length: a padding token that is also the end of text stays learned where it is real."""
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        return DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)

    def score(self, logits: torch.Tensor, feature: Feature) -> TokenScore:
        """Position i predicts token i + 1."""
        return score_tokens(logits[:-1], torch.tensor(feature["labels"][1:], device=logits.device))

    def golden(self, model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Those of the rows as they stand."""
        return token_logits(model, [list(row) for row in rows])


def _logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    from lorary.training.precision import answering

    with answering(model):
        logits: torch.Tensor = model(**inputs).logits[0]
    return logits.float().cpu()


class _Shifting:
    """Makes a decoder's inputs of labels for classes that do so in their forward only (M2M100, NLLB's experts)."""

    def __init__(self, config: Any) -> None:
        self._start, self._pad = config.decoder_start_token_id, config.pad_token_id

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Shifted by one to the right behind the start token, padding in place of ignored labels."""
        start = torch.full((labels.shape[0], 1), self._start, dtype=labels.dtype, device=labels.device)
        return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, self._pad)], dim=1)
