"""DoRA (Liu et al. 2024) in the slots: its norm is taken once, when an adapter meets its backbone.

DoRA multiplies what ``W + scale * B A`` gives by magnitude / ||W + scale * B A||, output by output. With W frozen that
is a gain on the wrapped module's own output, which is undone for its bias, and a B with the ratio in it.
"""

from __future__ import annotations

import torch

from lorary.adapters.base.modules import LinearShape
from lorary.adapters.base.quantization import dense_weight
from lorary.adapters.layer.slots import LowRank


def fold_magnitude(
    module: torch.nn.Module, shape: LinearShape, plain: LowRank, magnitude: torch.Tensor, *, norm_scale: float
) -> LowRank:
    """The factors of a plain site with DoRA's ``magnitude`` [outputs] folded in.

    ``norm_scale`` is the scale under the norm: that of the update, without what an embedding multiplies its output by.
    """
    ratio = magnitude.float() / _norm(module, shape, plain.a, plain.b, norm_scale)
    gain = ratio - 1
    own_bias = None if shape.embedding else getattr(module, "bias", None)
    # The module's bias is in its output, and isn't DoRA's to scale. Staging multiplies a bias by the scale.
    bias = None if own_bias is None else -gain * own_bias.detach().float().cpu() / plain.scale
    return LowRank(plain.a, plain.b.float() * ratio[:, None], bias, plain.scale, gain)


def unfold_magnitude(
    module: torch.nn.Module, shape: LinearShape, folded: LowRank, *, norm_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """B and the magnitude as the checkpoint has them, from what :func:`fold_magnitude` made of them."""
    assert folded.gain is not None
    ratio = 1 + folded.gain
    b = folded.b / ratio[:, None]
    return b, ratio * _norm(module, shape, folded.a, b, norm_scale)


def _norm(module: torch.nn.Module, shape: LinearShape, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """The norm of each output's weights, W + scale * B A: [outputs], float32 on the CPU."""
    weight = dense_weight(module)
    weight = (weight.T if shape.transposed else weight).float()
    return torch.linalg.vector_norm(weight + scale * (b.to(weight) @ a.to(weight)), dim=1).cpu()
