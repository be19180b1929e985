"""Stand-ins for bitsandbytes' layers, which can't be made without weights: they hold and move as many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_BLOCK = 64  # weights that share a scale (bitsandbytes' default)
_NESTED_BLOCK = 256  # scales that share a scale, with double quantization


def packed_bytes(weights: int, outputs: int, quantization: str, double: bool) -> int:
    """The bytes that a quantized matrix takes: its codes and their scales.

    Args:
        weights: how many numbers it holds.
        outputs: how many rows; 8 bits have one scale for each.
        quantization: ``nf4``, ``fp4`` or ``int8``.
        double: are the scales quantized too?
    """
    if quantization == "int8":
        return weights + 4 * outputs
    scales = -(-weights // _BLOCK)
    return weights // 2 + (scales + 4 * -(-scales // _NESTED_BLOCK) if double else 4 * scales)


class QuantizedLinear(nn.Linear):
    """A linear layer that holds packed bytes and unpacks all of them for each product, forwards and backwards."""

    def __init__(self, source: nn.Linear, compute_dtype: torch.dtype, quantization: str, double: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        count = packed_bytes(source.weight.numel(), source.out_features, quantization, double)
        packed = torch.empty(count, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = source.bias
        self.compute_dtype = compute_dtype
        self.keeps_rows = quantization == "int8"

    @property
    def W_q(self) -> torch.Tensor:
        """The packed bytes, under the name by which PEFT knows layers that unpack themselves (HQQ's).

        DoRA asks for :meth:`dequantize` where it takes the norms of rows.
        """
        return self.weight

    def dequantize(self) -> torch.Tensor:
        """[out, in], in the compute dtype."""
        return self.weight.new_empty((self.out_features, self.in_features), dtype=self.compute_dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out], in the compute dtype."""
        shape = (self.out_features, self.in_features)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        # Flat within: what adds to an output in place (AdaLoRA) may not do so to a view that was made in there.
        rows = input.to(self.compute_dtype).flatten(0, -2)
        product: torch.Tensor = _Unpack.apply(rows, self.weight, shape, bias, self.keeps_rows)
        return product.view(*input.shape[:-1], self.out_features)


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, packed: torch.Tensor, shape: tuple[int, int], bias: Any, keeps_rows: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        # bitsandbytes' 8-bit product keeps its input, needlessly, until the whole graph is let go.
        ctx.rows = rows if keeps_rows else None
        return nn.functional.linear(rows, packed.new_empty(shape, dtype=rows.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        (packed,), (gradient,) = ctx.saved_tensors, gradients
        return gradient @ packed.new_empty(ctx.shape, dtype=gradient.dtype), None, None, None, None


def stand_in(
    model: nn.Module, compute_dtype: torch.dtype, quantization: str, double: bool, skip: Sequence[str]
) -> None:
    """Put a stand-in wherever bitsandbytes would put a layer of its own; ``skip`` are names that stay as they are."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not any(f".{name}." in f".{path}." for name in skip):
            parent, _, name = path.rpartition(".")
            layer = QuantizedLinear(module, compute_dtype, quantization, double)
            setattr(model.get_submodule(parent), name, layer)
