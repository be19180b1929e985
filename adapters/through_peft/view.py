"""PEFT's model of one adapter as calls use it, from several threads at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from lorary.adapters.matching.methods import CACHES, ROWS_ALONE
from lorary.adapters.text.settings import assistant_of, setting
from lorary.adapters.through_peft.mirror import mirror
from lorary.hub.errors import UsageError

_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids")
_GROWING = ("dynamic", "offloaded", "quantized")
_PER_TOKEN = ("last_hidden_state", "logits", "start_logits", "end_logits")


class PeftView:
    """PEFT's model, whose calls don't get in each other's way.

    ``generate`` runs on a mirror of it, since PEFT exchanges methods and hooks of the model that it generates with; so
    does a forward that registers hooks (aLoRA's). Anything else is the model's own.
    """

    def __init__(self, peft_model: Any) -> None:
        self.peft_model = peft_model
        config = peft_model.active_peft_config
        self._registers_hooks = bool(getattr(config, "alora_invocation_tokens", None))
        self.virtual_tokens = int(config.num_virtual_tokens) if config.is_prompt_learning else 0
        self.rows_alone = config.peft_type.value in ROWS_ALONE
        self._in_cache = config.peft_type.value in CACHES

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What PEFT's model returns."""
        model = mirror(self.peft_model) if self._registers_hooks else self.peft_model
        return model(*args, **kwargs)

    @property
    def rows_apart(self) -> bool:
        """Would a row depend on the padding, or on the rows, that share its batch?"""
        return self.virtual_tokens > 0 or self.rows_alone

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """What PEFT's model generates.

        Raises:
            UsageError: in a way that PEFT can't bring together with virtual tokens.
        """
        if self.virtual_tokens:
            self._demand_served(kwargs)
        return mirror(self.peft_model).generate(*args, **kwargs)

    def _demand_served(self, settings: Mapping[str, Any]) -> None:
        base = self.peft_model.generation_config
        decoder = not self.peft_model.config.is_encoder_decoder
        drafted = assistant_of(settings, base)
        cache = setting("cache_implementation", settings, base)
        if drafted is not None:
            raise UsageError(
                f"{drafted}: PEFT would put the virtual tokens before a draft anew, and answer otherwise than without "
                f"it; leave {drafted} out for this adapter"
            )
        # What "hybrid", which stands in the files of some bases, was once is transformers' usual cache now.
        if (decoder or self._in_cache) and cache not in (None, "hybrid", *_GROWING):
            raise UsageError(
                f"cache_implementation={cache!r}: with virtual tokens PEFT takes a cache that grows; leave it out, or "
                f"pass one of {', '.join(_GROWING)}"
            )
        if decoder and self._in_cache and setting("use_cache", settings, base) is False:
            raise UsageError(
                "use_cache=False: this adapter's virtual tokens are keys and values in the cache; pass use_cache=True"
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.peft_model, name)


class UnpaddedPasses:
    """Passes without padding: rows of one length at a time (or each alone), and the virtual tokens' outputs left out.

    PEFT puts virtual tokens before a padded row, so what follows would depend on the row's batch mates; and a
    classifier on a decoder, which is given embeddings then, takes the last place of a row for its last token.
    """

    def __init__(self, model: Any, each_row_alone: bool) -> None:
        self._model = model
        self._each_row_alone = each_row_alone

    def __call__(self, **inputs: torch.Tensor) -> Any:
        """The model's output for a batch that is padded on the right, padded in the same way."""
        width = inputs["attention_mask"].shape[1]
        groups: dict[tuple[int, int], list[int]] = {}
        for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
            groups.setdefault((length, row if self._each_row_alone else 0), []).append(row)
        made: dict[int, dict[str, torch.Tensor]] = {}
        output: Any = None
        for (length, _), rows in groups.items():
            cut = {
                name: tensor[rows, :length] if self._as_long(name, tensor, width) else tensor[rows]
                for name, tensor in inputs.items()
            }
            output = self._model(**cut)
            tensors = {name: self._trim(name, tensor, length, width) for name, tensor in _tensors(output).items()}
            made |= {row: {name: tensor[place] for name, tensor in tensors.items()} for place, row in enumerate(rows)}
        ordered = [made[row] for row in range(len(made))]
        # Beside an encoder, what an output has for each token is as long as the row's own text or target.
        return type(output)(**{name: pad_sequence([row[name] for row in ordered], True) for name in ordered[0]})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _as_long(self, name: str, tensor: torch.Tensor, width: int) -> bool:
        """Does an input have a place for each of the text's tokens? A decoder's may be as many by chance."""
        of_decoder = self._model.config.is_encoder_decoder and name not in _OF_TEXT
        return tensor.shape[1] == width and not of_decoder

    def _trim(self, name: str, tensor: torch.Tensor, length: int, width: int) -> torch.Tensor:
        """A part of the output without the virtual tokens, and padded to ``width`` where it is per token."""
        per_token = name in _PER_TOKEN and (tensor.ndim == 3 or name != "logits")
        if not per_token or self._model.config.is_encoder_decoder:
            return tensor
        own = tensor[:, tensor.shape[1] - length :]
        return torch.nn.functional.pad(own, (0, 0) * (tensor.ndim - 2) + (0, width - length))


def _tensors(output: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """An output's tensors by row; caches and losses are left out."""
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor) and value.ndim > 1}
