"""Does a merged model answer as the adapter does on its backbone? Asked of its files, before they are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorary.adapters.adapter import Adapter
from lorary.adapters.base.device import dtype_name
from lorary.adapters.base.identity import body_of
from lorary.adapters.base.loading import quietly
from lorary.adapters.heads.task_heads import in_parts
from lorary.adapters.proving.golden import tolerance
from lorary.adapters.proving.proof import probe_row
from lorary.adapters.running.forward import logits_of
from lorary.adapters.running.inference import Inference
from lorary.adapters.through_peft.adapter import PeftAdapter
from lorary.hub.errors import MergeError, first_line

_ROWS = 4
_KEPT = 1 / 3
"""The share of the adapter's effect that has to be left.

An effect as small as a backbone's own rounding shows as a half in a perfect merge; the bare base then shows as a third.
"""


Merged = Adapter | PeftAdapter


@dataclass(frozen=True)
class Answers:
    """The logits of a token row as they are served, and the bare backbone's."""

    served: Callable[[Sequence[int]], torch.Tensor]
    bare: Callable[[Sequence[int]], torch.Tensor]


def check_rows(adapter: Merged, inference: Inference) -> list[list[int]]:
    """Token rows to compare on: the adapter's golden ones, or some spread over the vocabulary."""
    golden = adapter.manifest.golden_rows if adapter.manifest else ()
    probe = probe_row((), inference.vocabulary)
    rows = [list(row) for row in golden[:_ROWS]] or [probe, probe[::-1]]
    config = inference.model.config
    if not config.is_encoder_decoder or config.eos_token_id is None:
        return rows
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    # Heads on encoder-decoders read the state at the end of the sequence, and want one.
    return [row if row[-1] == end else [*row, end] for row in rows]


@dataclass(frozen=True)
class Precision:
    """The dtype that the backbone computes in, that of the merged weights, and the backbone's quantization."""

    served: torch.dtype
    merged: torch.dtype
    quantization: str

    @property
    def limit(self) -> float:
        """How far logits may be apart, relative to 1 + the row's largest: by the coarser of the two dtypes.

        An 8-bit backbone rounds what its layers are given as well as their weights; the merged model doesn't.
        """
        return tolerance(dtype_name(self.merged if self.coarsens else self.served), self.quantization)

    @property
    def coarsens(self) -> bool:
        """Are the merged weights rounded more than what the backbone computes with?"""
        return torch.finfo(self.merged).eps > torch.finfo(self.served).eps


def check_merged(
    folder: Path, kind: Any, precision: Precision, inference: Inference, adapter: Merged, answers: Answers
) -> float:
    """Load a merged model of class ``kind`` with transformers and hold its logits against the adapter's.

    On the CPU and in float32: loading in another dtype changes the process's default while it lasts, and with it what
    other threads compute. Rounded weights stay rounded.

    Returns:
        The largest difference found, relative to 1 + the row's largest logit.

    Raises:
        MergeError: it doesn't load whole, its logits differ by more than the limit, or the adapter's effect is lost.
    """
    rows = check_rows(adapter, inference)
    served = [answers.served(row) for row in rows]
    bare = [answers.bare(row) for row in rows]
    model = _load(folder, kind)
    read = _states if adapter.task == "feature-extraction" else _logits
    merged = [read(model, _inputs(row, adapter, inference)) for row in rows]
    worst = max(
        float((ours - theirs).abs().max() / (1 + theirs.abs().max()))
        for ours, theirs in zip(merged, served, strict=True)
    )
    # A NaN compares false with everything, so ask whether it is within, not whether it is beyond.
    if not worst <= precision.limit:
        raise MergeError(
            f"the merged model's logits differ from the adapter's by {worst:.2g} (relative; {precision.limit:.0e} is "
            "allowed), so it isn't kept; its class may compute something that the weights alone don't say"
        )
    kept = _kept(merged, served, bare, coarser=precision.coarsens)
    if not kept >= _KEPT:
        raise MergeError(
            f"{max(kept, 0.0):.0%} of the adapter's effect is left in the merged model ({_KEPT:.0%} has to be), so it "
            f"isn't kept; {dtype_name(precision.merged)} may be too coarse for so slight an adapter, try float32"
        )
    return worst


def _kept(
    merged: Sequence[torch.Tensor], served: Sequence[torch.Tensor], bare: Sequence[torch.Tensor], *, coarser: bool
) -> float:
    """How much of the adapter's effect, served minus bare, is in merged minus bare.

    Where the merged weights are ``coarser`` than the backbone's, whatever is apart counts as lost. Elsewhere the
    backbone's own rounding is apart too, which has no direction, so only what is lost along the effect counts.
    """

    def flat(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([(one - other).flatten().double() for one, other in zip(ours, theirs, strict=True)])

    effect, error = flat(served, bare), flat(merged, served)
    size = float(effect.square().sum())
    if not size:
        return 0.0
    return 1 - (float(error.square().sum()) / size) ** 0.5 if coarser else 1 + float(error @ effect) / size


def _load(folder: Path, kind: Any) -> Any:
    try:
        with quietly():
            model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise MergeError(f"transformers can't load the merged {kind.__name__}: {first_line(error)}") from error
    lacking = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    if lacking:
        raise MergeError(f"the merged {kind.__name__} doesn't load whole: {lacking[0]} has no place or no value")
    return model.eval()


def _inputs(row: Sequence[int], adapter: Merged, inference: Inference) -> dict[str, torch.Tensor]:
    ids = torch.tensor([row], device=inference.device)
    if adapter.head is not None:
        return {"input_ids": ids.cpu(), "attention_mask": torch.ones_like(ids).cpu()}
    return {name: tensor.cpu() for name, tensor in inference.batch(ids).items()}


def _logits(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The row's logits, or its hidden states from a model without a head, as :meth:`Backbone.logits` gives them."""
    with torch.no_grad():
        return logits_of(model(**inputs))[0].float()


def _states(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The row's hidden states, as an embedding adapter's are read: the encoder's where the body is kept in parts."""
    body = body_of(model)
    if in_parts(body):
        body, inputs = body.get_encoder(), {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return _logits(body, inputs)
