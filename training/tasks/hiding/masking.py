"""Hiding tokens for masked language modelling: anew in each epoch of training, always the same ones in held-out rows.

transformers' ``DataCollatorForLanguageModeling`` hides them: 80 % become the mask token, 10 % a random one, 10 % stay
(Devlin et al. 2019); whole words become mask tokens altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from lorary.training.fitting.losses import IGNORED
from lorary.training.tasks.hiding.hider import Hider
from lorary.training.tasks.rows.made_rows import MadeRows
from lorary.training.tasks.rows.token_rows import Frame, TokenRows, frame_of

Feature = dict[str, Any]


class Masker(Hider):
    """Hides a share of tokens, or of words; special tokens are never hidden.

    Args:
        tokenizer: the base's, with a mask token.
        probability: of each token, or of each word.
        whole_words: all pieces of a word are hidden together (Cui et al. 2021).
    """

    def __init__(self, tokenizer: Any, probability: float, whole_words: bool) -> None:
        from transformers import DataCollatorForLanguageModeling

        settings = {"mlm_probability": probability, "whole_word_mask": whole_words}
        if whole_words:
            settings |= {"mask_replace_prob": 1.0, "random_replace_prob": 0.0}
        self.whole_words = whole_words
        self._pad, self._mask = tokenizer.pad_token_id, tokenizer.mask_token_id
        self.never = frozenset(tokenizer.all_special_ids)
        separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        self.between = Frame((), () if separator is None else (separator,))
        self.around = frame_of(tokenizer)
        self._theirs = DataCollatorForLanguageModeling(tokenizer, **settings, return_tensors="np")

    def hide(self, ids: Sequence[int], words: Sequence[int] | None, random: np.random.Generator) -> Feature:
        """A row with tokens hidden by ``random``, at least one of them: a mean over nothing would be no number."""
        inputs = np.array([ids])
        special = np.isin(inputs, sorted(self.never))
        self._theirs.generator = random
        offsets = None if words is None else _offsets(np.array([words]))
        inputs, labels = self._theirs.numpy_mask_tokens(inputs, special, offsets)
        if (labels == IGNORED).all() and not special.all():
            place = random.choice(np.flatnonzero(~special[0]))
            labels[0, place] = ids[place]
            inputs[0, place] = self._mask
        return {"input_ids": inputs[0].tolist(), "attention_mask": [1] * len(ids), "labels": labels[0].tolist()}

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """One batch, padded."""
        fill = {"input_ids": self._pad, "attention_mask": 0, "labels": IGNORED}
        return {
            name: torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(feature[name]) for feature in features], batch_first=True, padding_value=fill[name]
            )
            for name in features[0]
        }


def _offsets(begins: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Character offsets [rows, tokens, 2] that say the same as ``begins``: a gap stands before each word.

    transformers' collator tells words apart by such gaps, and blocks of several documents have no offsets of their own.
    """
    starts = np.cumsum(1 + begins, axis=1)
    return np.stack([starts, starts + 1], axis=2)


class HiddenRows(MadeRows):
    """Rows with parts hidden: always the same ones, or others in each epoch.

    Args:
        seed: with one, they are hidden anew for each :attr:`epoch`. Nothing but the seed, the epoch and the row
            decides which: not the batch that a row is in, nor the process, nor where a run was stopped.
    """

    def __init__(
        self, rows: TokenRows, hider: Hider, places: Sequence[int] | None = None, seed: int | None = None
    ) -> None:
        super().__init__(rows, places)
        self.epoch = 0
        self._hider, self._seed = hider, seed

    def make(self, place: int) -> Feature:
        """What is read of a row, and what is to be told of it."""
        ids = self.rows.row(place)
        words = self.rows.words(place) if self.rows.begins is not None else None
        if self._seed is None:
            return self._hider.fixed(ids, words)
        return self._hider.hide(ids, words, np.random.default_rng([self._seed, self.epoch, place]))

    def pick(self, places: Sequence[int]) -> HiddenRows:
        """Some of the rows."""
        return HiddenRows(self.rows, self._hider, [self.places[place] for place in places], self._seed)

    def anew(self, seed: int) -> HiddenRows:
        """The same rows for training."""
        return HiddenRows(self.rows, self._hider, self.places, seed)


class Epochs(TrainerCallback):
    """Tells rows which epoch a trainer is in."""

    def __init__(self, rows: HiddenRows) -> None:
        self._rows = rows

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called before the epoch's first batch is made; in the middle of an epoch where a run goes on from there."""
        self._rows.epoch = int(state.epoch or 0)
