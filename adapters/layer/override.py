"""A linear module that an adapter trained whole, beside its low-rank updates."""

from __future__ import annotations

import torch


class TrainedLinear:
    """A linear module that was trained whole: it takes the wrapped module's place for its adapter's rows.

    ``weight`` is laid out as the wrapped module's: [outputs, inputs], or [inputs, outputs] for GPT-2's ``Conv1D``.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool) -> None:
        self.weight = weight.T if transposed else weight  # [outputs, inputs]
        self._transposed = transposed
        self.bias = bias

    def parameter(self, name: str) -> torch.Tensor:
        """``weight`` or ``bias`` as the checkpoint lays it out, float32 on the CPU."""
        tensor = self.bias if name == "bias" else (self.weight.T if self._transposed else self.weight)
        assert tensor is not None
        return tensor.detach().float().cpu()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., inputs] to [..., outputs]."""
        return torch.nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)
