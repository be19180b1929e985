"""The corpus of a pretraining run: documents, then blocks of token ids for the model's own objective."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorary.training.data import Example, Note, split_rows
from lorary.training.data.files.contents import Manner
from lorary.training.data.files.source import Source, for_each, read_source
from lorary.training.data.files.text import read_text
from lorary.training.data.rows import check_rows
from lorary.training.data.splits import FEWEST_VALIDATION_ROWS, note_overlap
from lorary.training.fitting.evaluate import token_logits
from lorary.training.pretraining.recipe import PretrainRecipe
from lorary.training.recipe.corpus import is_text
from lorary.training.tasks.causal_blocks import LearnedRows
from lorary.training.tasks.forms import Causal, EncoderDecoder
from lorary.training.tasks.hiding.hider import Hider
from lorary.training.tasks.hiding.masking import HiddenRows, Masker
from lorary.training.tasks.hiding.spans import measured_labels, span_collator, span_hider
from lorary.training.tasks.metrics.tokens import TokenScore, score_tokens, unigram
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.rows.made_rows import MadeRows
from lorary.training.tasks.rows.token_rows import Frame, blocks, frame_of, tokenize


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, to choose the epoch by, and held out; and where they came from."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    provenance: dict[str, Any]


def load_corpus(recipe: PretrainRecipe, note: Note) -> Corpus:
    """Read, check and split the recipe's corpus.

    Raises:
        DataError: text that can't be read, by file and line; too few documents.
    """
    data, seed = recipe.data, recipe.training.seed

    def read(text: str) -> Source:
        if is_text(text):
            return read_text(text, data.sample_by, note, data.encoding)
        return read_source(text, Manner(encoding=data.encoding))

    sources = {part: read(text) for part, text in (("train", data.train), ("test", data.test)) if text is not None}
    parts = for_each(
        sources, lambda source: check_rows(source, {"text": "text" if is_text(source.shown) else data.text})
    )
    train, test = parts["train"], parts.get("test")
    if test is None:
        train, test = split_rows(train, data.test_size or 0.1, seed, note)
    validation: tuple[Example, ...] = ()
    if recipe.training.early_stopping and data.validation_size:
        if data.validation_size * len(train) < FEWEST_VALIDATION_ROWS:
            note(f"the last epoch is kept: {data.validation_size:g} of {len(train)} documents are too few to choose by")
        else:
            train, validation = split_rows(train, data.validation_size, seed, note)
    note_overlap(train + validation, test, note)
    counts = {"train": len(train), "validation": len(validation), "test": len(test)}
    told = {part: source.provenance() for part, source in sources.items()}
    return Corpus(train, validation, test, {**told, "documents": counts})


class Objective:
    """What a model learns: the next token (``llama``), hidden tokens (``bert``) or hidden spans (``t5``).

    Args:
        recipe: how much is hidden, and how long rows are.
        tokenizer: the model's.
        model: makes a decoder's inputs, where it has an encoder too.
    """

    def __init__(self, recipe: PretrainRecipe, tokenizer: Any, model: Any) -> None:
        training = recipe.training
        self._context, self._tokenizer, self._seed = recipe.model.context, tokenizer, training.seed
        self.causal = recipe.architecture == "llama"
        self._form = EncoderDecoder(model) if recipe.architecture == "t5" else None
        self._masker = (
            Masker(tokenizer, training.mlm_probability or 0.15, training.whole_word_mask)
            if recipe.architecture == "bert"
            else None
        )
        self._hider: Hider | None = self._masker
        if self._form is not None:
            self._hider = span_hider(tokenizer, training.mlm_probability, training.mean_span)

    def encode(self, documents: Sequence[Example]) -> Encoded:
        """Documents in blocks as long as the model's context, each named by the document that it begins in.

        Raises:
            DataError: the text is too short.
            TrainingError: the blocks have more spans than the tokenizer has sentinels.
        """
        tokenizer = self._tokenizer
        if self._hider is None:
            frame = frame_of(tokenizer)
            ends = Frame(frame.before, (*frame.after, tokenizer.eos_token_id))
            made: MadeRows = LearnedRows(blocks(tokenize(documents, tokenizer), self._context, ends, Frame((), ())))
        else:
            stream = self._hider.tokenize(documents, tokenizer)
            made = HiddenRows(self._hider.joined(stream, self._context), self._hider)
        return Encoded(tuple(documents[index] for index in made.rows.first), made, (None,) * len(made))

    def training_rows(self, rows: Sequence[Feature]) -> Sequence[Feature]:
        """Rows as the trainer takes them: with other parts hidden in each epoch, where any are."""
        return rows.anew(self._seed) if isinstance(rows, HiddenRows) else rows

    def collator(self) -> Callable[[list[Feature]], dict[str, torch.Tensor]]:
        """Pads."""
        if self._masker is not None:
            return self._masker.collate
        if self._form is not None:
            return span_collator(self._form, self._tokenizer)
        return Causal().collator(self._tokenizer)

    def score(self, logits: torch.Tensor, feature: Feature) -> TokenScore:
        """A row's logits [tokens, vocabulary] against what was to be predicted."""
        labels = torch.tensor(self._asked(feature), device=logits.device)
        return score_tokens(logits[:-1] if self.causal else logits, labels)

    def golden(self, model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """A model's logits for bare token rows."""
        return (
            token_logits(model, [list(row) for row in rows]) if self._form is None else self._form.golden(model, rows)
        )

    def unigram(self, train: Encoded, test: Encoded) -> dict[str, float]:
        """What the frequencies of the training tokens alone give on the held-out ones."""
        asked = ({"labels": self._asked(feature)} for feature in test.features)
        if self._hider is None:
            return unigram([ids_of(train)], asked, len(self._tokenizer))
        assert isinstance(train.features, HiddenRows)
        counted = self._hider.counted(train.features.rows)
        return unigram(counted, asked, len(self._tokenizer), sorted(self._hider.untold))

    def _asked(self, feature: Feature) -> list[int]:
        """A row's labels as they are measured."""
        if self._form is not None:
            return measured_labels(feature)
        labels: list[int] = feature["labels"]
        return labels[1:] if self.causal else labels  # a block's first token is never predicted


def ids_of(rows: Encoded) -> array[int]:
    """All token ids of encoded documents."""
    assert isinstance(rows.features, MadeRows)
    return rows.features.rows.ids
