"""Which rows may share a padded batch: those whose results don't depend on how long their batch mates are.

Most models leave padding out by their mask. Some see it all the same: convolutions that run over it (ConvBERT,
RecurrentGemma), embeddings that look at their neighbours (MobileBERT), recurrences without a mask (RWKV). And some turn
to other rotary frequencies for a whole batch when one row is longer than what they were first trained on (longrope,
dynamic NTK scaling). T5Gemma's classifier reads one token further in a row that is padded than in one that isn't.
transformers lets a row depend on its company there; here rows of one length run together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lorary.adapters.layer.compiled import eagerly
from lorary.adapters.layer.routing import routed

_SHORT, _LONG = 4, 12
_TOLERANCE = {torch.float32: 1e-4}  # relative to 1 + the largest value: beyond rounding, padding shows
_COARSE = 5e-2  # in narrower dtypes and on quantized weights, whose rounding depends on the batch
_ONE_BY_ONE = ("rwkv",)  # transformers carries the state of several rows on wrongly, whatever their lengths


class PaddingProbe:
    """Asks of one backbone's model, once and only when rows of several lengths meet, whether padding shows in it.

    Args:
        model: the backbone's model, with its language-modelling head, if any.
        body: its body.
        pad: the token to pad with.
        exact: whether weights are unquantized.
    """

    def __init__(self, model: Any, body: Any, *, pad: int, exact: bool) -> None:
        self._model, self._body, self._pad = model, body, pad
        self._tolerance = _TOLERANCE.get(_dtype(body), _COARSE) if exact else _COARSE
        self._first_length = first_length(model.config)
        self._shown: dict[bool, bool] = {}
        self._shown_by: dict[type, bool] = {}  # the classes of classifiers

    def groups(
        self,
        lengths: Sequence[int],
        *,
        generating: bool,
        growing: int = 0,
        counted: bool = False,
        classifiers: Sequence[Any] = (),
    ) -> list[list[int]]:
        """The rows of these lengths in parts that may share a batch, in order of first appearance.

        ``growing``: the most tokens that each may get besides. ``counted``: the call's settings count padding.
        ``classifiers``: each row's task model that answers for the row as a whole, None where it has no such.
        """
        if generating and self._model.config.model_type in _ONE_BY_ONE:
            return [[row] for row in range(len(lengths))]
        if len(set(lengths)) < 2:
            return [list(range(len(lengths)))]
        if generating not in self._shown:
            self._shown[generating] = self._shows(generating)
        first = 0 if counted or self._shown[generating] else self._first_length
        apart = [classifier is not None and self._shows_by(classifier) for classifier in classifiers]
        parts: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            together = (first is None or length + growing <= first) and not (apart and apart[row])
            parts.setdefault(0 if together else length, []).append(row)
        return list(parts.values())

    def _shows_by(self, classifier: Any) -> bool:
        """Does a short row's answer change when it is padded, by what its classifier does? Its class decides that."""
        kind = type(classifier)
        if kind not in self._shown_by:
            end = [classifier.config.eos_token_id] if hasattr(classifier, "classification_head") else []

            def answer(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = classifier(input_ids=ids, attention_mask=mask).logits
                return logits.float()

            self._shown_by[kind] = self._compare(answer, generating=False, end=end)
        return self._shown_by[kind]

    def _shows(self, generating: bool) -> bool:
        """Does a short row's result change when it is padded, on the side where it would be?"""
        return self._compare(self._first_logits if generating else self._states, generating=generating)

    def _compare(
        self,
        answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        generating: bool,
        end: Sequence[int] = (),
    ) -> bool:
        """Does ``answer`` differ for a short row, ended by ``end``, alone and padded beside a long one?"""
        vocabulary, device = self._body.get_input_embeddings().weight.shape[0], self._body.device
        ids = torch.arange(1, _SHORT + _LONG + 1, device=device) * vocabulary // (_SHORT + _LONG + 1)
        last = torch.tensor(end, device=device, dtype=ids.dtype)
        with torch.no_grad(), routed(None), eagerly():
            return self._differs(answer, torch.cat([ids[:_SHORT], last]), torch.cat([ids[_SHORT:], last]), generating)

    def _differs(
        self, answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], short: Any, long: Any, generating: bool
    ) -> bool:
        left = generating and not self._model.config.is_encoder_decoder
        fill, empty = torch.full_like(long[len(short) :], self._pad), torch.zeros_like(long[len(short) :])
        padded = torch.cat([fill, short] if left else [short, fill])
        real = torch.cat([empty, torch.ones_like(short)] if left else [torch.ones_like(short), empty])
        alone = answer(short[None], torch.ones_like(short)[None])[0]
        beside = answer(torch.stack([padded, long]), torch.stack([real, torch.ones_like(long)]))[0]
        difference = (alone - beside[: len(alone)]).abs().max()
        return not float(difference) <= self._tolerance * (1 + float(alone.abs().max()))

    def _states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The body's states [rows, tokens, hidden]; of an encoder-decoder, the encoder's."""
        body = self._body.get_encoder() if self._body.config.is_encoder_decoder else self._body
        states: torch.Tensor = body(input_ids=ids, attention_mask=mask)[0]
        return states.float()

    def _first_logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The logits [rows, 1, vocabulary] of each row's first new token."""
        made = self._model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=1, num_beams=1, do_sample=False, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True,
            # Whatever the base's own config says:
            num_return_sequences=1, stop_strings=None, prompt_lookup_num_tokens=None, guidance_scale=None,
        )  # fmt: skip
        return made.logits[0].float().unsqueeze(1)


def first_length(config: Any) -> int | None:
    """The length beyond which a model's rotary frequencies depend on the longest row; None where they never do."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    if "dynamic" not in str(rope) and "longrope" not in str(rope):
        return None
    stated = getattr(text, "original_max_position_embeddings", None) or rope.get("original_max_position_embeddings")
    length = stated or getattr(text, "max_position_embeddings", None)
    return int(length) if length else None


def _dtype(model: Any) -> torch.dtype:
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype
    return dtype
