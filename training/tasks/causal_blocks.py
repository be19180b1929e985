"""Continued pretraining of a causal model: documents joined and cut into blocks, every token learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorary.training.data import Example, Note
from lorary.training.tasks.base import Metrics, Task
from lorary.training.tasks.metrics.tokens import unigram
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.rows.made_rows import MadeRows
from lorary.training.tasks.rows.token_cache import TokenCache
from lorary.training.tasks.rows.token_rows import Frame, blocks, frame_of, tokenize
from lorary.training.tasks.text_generation import TextGeneration


class CausalBlocks(TextGeneration):
    """Text generation under strategy ``continual``.

    Documents stand one after the other, each between the tokenizer's beginning and end of text, and are cut into blocks
    of ``max_length`` tokens (GPT-2's way): nothing is padded or lost. A block's later documents see its earlier ones,
    in training and in the held-out figures alike.
    """

    def encode(
        self, examples: Sequence[Example], tokenizer: Any, max_length: int, note: Note, cache: TokenCache | None = None
    ) -> Encoded:
        """Documents to blocks of token ids.

        Raises:
            DataError: there isn't enough text.
            TrainingError: the tokenizer has no end-of-text token.
        """
        self._check(tokenizer)
        frame, end = frame_of(tokenizer), tokenizer.eos_token_id
        after = frame.after if frame.after[-1:] == (end,) else (*frame.after, end)
        rows = blocks(tokenize(examples, tokenizer), max_length, Frame(frame.before, after), Frame((), ()))
        owners = tuple(examples[index] for index in rows.first)
        return Encoded(owners, LearnedRows(rows), (None,) * len(rows))

    def trainer(self, model: Any, tokenizer: Any, settings: Mapping[str, Any], rows: Mapping[str, Any]) -> Any:
        """transformers' ``Trainer``: blocks need neither TRL's templates nor its packing."""
        return Task.trainer(self, model, tokenizer, settings, rows)

    def baselines(self, data: Sequence[Example], train: Encoded, test: Encoded, tokenizer: Any) -> dict[str, Metrics]:
        """``unigram``: what the frequencies of the training rows' tokens alone give."""
        assert isinstance(train.features, LearnedRows)
        # A block's first token is never predicted.
        rows = ({"labels": feature["labels"][1:]} for feature in test.features)
        return {"unigram": unigram([train.features.rows.ids], rows, len(tokenizer))}


class LearnedRows(MadeRows):
    """Rows of which every token is learned."""

    def make(self, place: int) -> Feature:
        """A row's ids, which are its labels too."""
        ids = self.rows.row(place)
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}

    def pick(self, places: Sequence[int]) -> LearnedRows:
        """Some of the rows."""
        return LearnedRows(self.rows, [self.places[place] for place in places])
