"""Can a backbone be served by continuous batching, with this version of transformers? Asked as an engine opens."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from packaging.version import Version

from lorary.adapters.engine.request import Request
from lorary.adapters.layer.compiled import eagerly
from lorary.adapters.running.inference import Inference, can_generate, longest_input
from lorary.hub.errors import EngineUnsupportedError, UntestedVersionWarning

TESTED = ("5.23", "5.24")
"""From which version of transformers the engine was tested with, and below which."""

_SEAMS = {
    "transformers.generation.configuration_utils": ("ContinuousBatchingConfig",),
    "transformers.generation.logits_process": ("LogitsProcessor", "LogitsProcessorList"),
    "transformers.generation.continuous_batching": ("ContinuousMixin", "FIFOScheduler"),
    "transformers.generation.continuous_batching.continuous_api": ("OutputRouter",),
    "transformers.generation.continuous_batching.model_runner": ("infer_max_single_request_tokens",),
    "transformers.generation.continuous_batching.scheduler": ("SCHEDULER_MAPPING",),
    "transformers.generation.continuous_batching.cache": ("PagedAttentionCache",),
    "transformers.generation.continuous_batching.cache_allocators.cache_allocator": ("CacheAllocator",),
}
_MEMBERS = {
    "ContinuousBatchingConfig": (
        "page_size",
        "num_blocks",
        "max_batch_tokens",
        "max_requests_per_batch",
        "scheduler_type",
        "allow_block_sharing",
        "auto_switch_to_flash",
        "use_cuda_graph",
        "use_async_batching",
        "max_blocks_per_request",
    ),
    "ContinuousMixin": ("init_continuous_batching",),
    "FIFOScheduler": ("schedule_batch", "clear_cancelled_requests", "set_request_cancellation"),
    "PagedAttentionCache": ("search_prefix_match", "free_all_requests"),
    "CacheAllocator": ("match_prefix_blocks", "mark_complete_blocks"),
    "OutputRouter": ("deliver", "deliver_batch", "fail_and_deliver"),
}
_TOLERANCE = 0.05  # of the largest logit; an attention that misses the cache, or sees neighbours, is far beyond it
"""Rounding, that of 8-bit weights included, stays below it."""


def check_version() -> None:
    """Look for all that the engine needs of transformers, and warn once about a version it wasn't tested with.

    Raises:
        EngineUnsupportedError: something it needs isn't there.
    """
    version = transformers.__version__
    tested = (
        f"the engine was tested with transformers {TESTED[0]} up to but not including {TESTED[1]}, this is {version}"
    )
    for module, names in _SEAMS.items():
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            raise EngineUnsupportedError(f"transformers has no {module}; {tested}: install one of those") from error
        for name in names:
            part = getattr(found, name, None)
            lacking = (
                [name] if part is None else [f"{name}.{m}" for m in _MEMBERS.get(name, ()) if not hasattr(part, m)]
            )
            if lacking:
                raise EngineUnsupportedError(f"transformers has no {lacking[0]}; {tested}: install one of those")
    if not Version(TESTED[0]) <= Version(version) < Version(TESTED[1]):
        warnings.warn(
            f"{tested}; its answers are compared with the model's own when it opens",
            UntestedVersionWarning,
            stacklevel=4,
        )


def check_backbone(inference: Inference) -> None:
    """Refuse a backbone that continuous batching isn't for.

    Raises:
        EngineUnsupportedError: it doesn't generate, has an encoder, several devices or an attention without paging.
    """
    model = inference.model
    name = type(model).__name__
    if not can_generate(model):
        raise EngineUnsupportedError(f"{name} has no language-modelling head; open a causal base for an engine")
    if model.config.is_encoder_decoder:
        raise EngineUnsupportedError(
            f"{name} is an encoder-decoder, which continuous batching doesn't serve; use Backbone.generate"
        )
    if inference.tokenizer is None:
        raise EngineUnsupportedError("this backbone was loaded without a tokenizer; pass one to Backbone.from_model")
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise EngineUnsupportedError(
            f"{name} is spread over {', '.join(sorted(map(str, devices)))}; an engine needs it on one device"
        )
    attention = model.config._attn_implementation
    if attention != "sdpa" and "flash" not in str(attention):
        other = "load it with attn_implementation='sdpa' and pass it to Backbone.from_model"
        raise EngineUnsupportedError(
            f"{name} computes its attention with {attention!r}, which reads no paged cache; "
            + (other if getattr(model, "_supports_sdpa", False) else "it has no other: use Backbone.generate")
        )


def most_positions(model: Any) -> int | None:
    """The most tokens that a request can have, None where the model sets no limit.

    Longrope turns to other frequencies for the whole step when one request is long, so none may be.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    # Of all layers, or of each kind of them.
    kinds = [rope, *(part for part in rope.values() if isinstance(part, Mapping))]
    turning = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(map(int, turning)) if turning else longest_input(model)


class Comparison:
    """Holds the logits of the loop's rows against the model's own for the same tokens, in a pass of their own."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._seen: list[tuple[list[int], torch.Tensor]] = []

    def note(self, request: Request, row: torch.Tensor) -> None:
        """What the loop made of a request so far."""
        self._seen.append(([*request.prompt, *request.tokens], row.detach().clone()))

    def demand_equal(self) -> None:
        """Compare.

        Raises:
            EngineUnsupportedError: the loop's logits are others.
        """
        for tokens, row in self._seen:
            with eagerly():
                own: Any = self._inference.run(tokens, None).logits[0, -1].float()
            difference = float((row - own).abs().max() / own.abs().max().clamp(min=1e-6))
            if not difference <= _TOLERANCE:
                raise EngineUnsupportedError(
                    f"{type(self._inference.model).__name__} answers otherwise in continuous batching than alone, by "
                    f"{difference:.0%} of its logits (transformers {transformers.__version__}); use Backbone.generate"
                )
