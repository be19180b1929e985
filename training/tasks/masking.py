"""Hiding tokens for masked language modelling: anew in each epoch of training, always the same ones in held-out rows.

transformers' ``DataCollatorForLanguageModeling`` hides them: 80 % become the mask token, 10 % a random one, 10 % stay
(Devlin et al. 2019); whole words become mask tokens altogether.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lorary.training.tasks.made_rows import MadeRows
from lorary.training.tasks.token_rows import TokenRows
from lorary.training.tasks.token_scores import IGNORED

Feature = dict[str, Any]


class Masker:
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
        self._special = frozenset(tokenizer.all_special_ids)
        self._fresh = DataCollatorForLanguageModeling(tokenizer, **settings)
        self._fixed = DataCollatorForLanguageModeling(tokenizer, **settings, return_tensors="np")

    def can_hide(self, ids: Sequence[int]) -> bool:
        """Is any of the tokens not a special one?"""
        return any(token not in self._special for token in ids)

    def fixed(self, ids: Sequence[int], words: Sequence[int] | None) -> Feature:
        """A row with the tokens hidden that are always hidden in this row, at least one of them.

        They depend on nothing but the row, so that figures before and after training, of several seeds and of a
        reloaded adapter are about the same tokens.
        """
        inputs = np.array([ids])
        special = np.isin(inputs, sorted(self._special))
        random = np.random.default_rng(zlib.crc32(array("i", ids).tobytes()))
        self._fixed.generator = random
        offsets = None if words is None else _offsets(np.array([words]))
        inputs, labels = self._fixed.numpy_mask_tokens(inputs, special, offsets)
        if (labels == IGNORED).all() and not special.all():
            place = random.choice(np.flatnonzero(~special[0]))
            labels[0, place] = ids[place]
            inputs[0, place] = self._mask
        return {"input_ids": inputs[0].tolist(), "attention_mask": [1] * len(ids), "labels": labels[0].tolist()}

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """One batch, padded; of rows that have no labels yet tokens are hidden, by torch's own random numbers."""
        fill = {"input_ids": self._pad, "attention_mask": 0, "labels": IGNORED, "words": 1}
        batch = {
            name: torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(feature[name]) for feature in features], batch_first=True, padding_value=fill[name]
            )
            for name in features[0]
        }
        words = batch.pop("words", None)
        if "labels" not in batch:
            special = torch.from_numpy(np.isin(batch["input_ids"].numpy(), sorted(self._special)))
            special |= batch["attention_mask"] == 0
            offsets = None if words is None else torch.from_numpy(_offsets(words.numpy()))
            whole = batch["input_ids"].clone()
            batch["input_ids"], batch["labels"] = self._fresh.torch_mask_tokens(batch["input_ids"], special, offsets)
            if (batch["labels"] == IGNORED).all() and not special.all():
                # By chance, in a small batch of short rows; a mean over nothing would be no number.
                row, place = _any_of(~special)
                batch["labels"][row, place] = whole[row, place]
                batch["input_ids"][row, place] = self._mask
        return batch


def _any_of(allowed: torch.Tensor) -> tuple[int, int]:
    """One of the places of a [rows, tokens] mask, by torch's random numbers."""
    places = allowed.nonzero()
    row, place = places[int(torch.randint(len(places), ()))].tolist()
    return row, place


def _offsets(begins: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Character offsets [rows, tokens, 2] that say the same as ``begins``: a gap stands before each word.

    transformers' collator tells words apart by such gaps, and blocks of several documents have no offsets of their own.
    """
    starts = np.cumsum(1 + begins, axis=1)
    return np.stack([starts, starts + 1], axis=2)


class MaskedRows(MadeRows):
    """Rows with their fixed masks; :meth:`plain` gives them without masks."""

    def __init__(
        self, rows: TokenRows, masker: Masker, places: Sequence[int] | None = None, masked: bool = True
    ) -> None:
        super().__init__(rows, places)
        self._masker, self._masked = masker, masked

    def make(self, place: int) -> Feature:
        """A row's ids, and its labels where tokens are hidden."""
        ids = self.rows.row(place)
        words = self.rows.words(place) if self.rows.begins is not None else None
        if self._masked:
            return self._masker.fixed(ids, words)
        feature: Feature = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        return feature if words is None else {**feature, "words": words}

    def pick(self, places: Sequence[int]) -> MaskedRows:
        """Some of the rows."""
        return MaskedRows(self.rows, self._masker, [self.places[place] for place in places], self._masked)

    def plain(self) -> MaskedRows:
        """The same rows with every token visible, for training: the collator hides others in each epoch."""
        return MaskedRows(self.rows, self._masker, self.places, masked=False)
