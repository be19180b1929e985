"""The sizes in a config of PEFT's other methods: PEFT builds and loops by them before it looks at a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lorary.adapters.arguments import is_whole
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import UnsupportedAdapterError

_MOST = 4096  # what a size may be that no tensor of the file has
_NO_SIZES = frozenset((
    "random_seed", "random_loc_seed", "generator_seed", "projection_seed", "proj_seed", "projection_prng_key",
    "lora_alpha", "alpha", "psoft_alpha", "randlora_alpha", "alpha_pattern", "delora_lambda", "lambda_pattern",
    "token_indices", "trainable_token_indices", "alora_invocation_tokens", "cpt_token_ids",
    "tinit", "tfinal", "deltaT", "total_step", "init_warmup", "final_warmup", "mask_interval",
))  # fmt: skip
"""Fields that PEFT neither builds nor loops by: seeds, scales, ids of tokens, and steps of training."""


def demand_sizes(checkpoint: Checkpoint) -> None:
    """Refuse a config with a size that is far beyond all that the file holds.

    Raises:
        UnsupportedAdapterError: it has one.
    """
    sizes = (size for info in checkpoint.tensors.values() if 0 not in info.shape for size in info.shape)
    most = max(_MOST, max(sizes, default=0))
    for field, value in checkpoint.config.items():
        if field not in _NO_SIZES and any(abs(number) > most for number in _numbers(value)):
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: {field}={value!r:.80} in its config: expected at most {most:,}, or what its "
                "tensors have; the config was damaged, or made to exhaust whoever loads it"
            )


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers in a field, however deep."""
    if is_whole(value):
        yield value
    elif isinstance(value, (list, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(part)
