"""Stand-ins for what looks at values, where tensors have none: results of the same size, made by as many operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class WithoutValues(TorchFunctionMode):
    """Lets the models' own code run on fake tensors where it would ask for values.

    T5's and BART's classifiers look for the last end-of-text token of each row, by a mask: that is one token a row
    here. The experts of a mixture multiply groups of rows, which torch plans for bfloat16 alone, and without counting
    its operations: each row is multiplied by one matrix, whichever. LayerDrop (BART's) throws a die for each layer, and
    leaves none out here. Of PEFT's methods, BOFT writes permutations entry by entry, UniLoRA counts how often each of
    its numbers is used, and AdaMSS sorts a weight's rows into clusters on the CPU, which may be any rows: only how many
    each cluster has depends on them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The function's result, or one like it."""
        if func is torch.rand and args and args[0] == []:
            return 1.0
        if func is torch.unique_consecutive:
            return args[0][:1]
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple) and _is_mask(args[1][0]):
            return args[0][:, -1]
        if func is torch.bincount:
            return args[0].new_empty((kwargs or {}).get("minlength", args[0].numel()))
        if func is torch.Tensor.__getitem__ and args[0].is_meta and getattr(args[1], "dtype", None) == torch.bool:
            return args[0]
        if func is torch.Tensor.__setitem__ and args[0].is_meta:
            return None
        if func is torch.Tensor.cpu and args[0].is_meta:
            # Any values, without throwing a die that a run's own come from.
            return torch.arange(args[0].numel(), dtype=args[0].dtype, device="cpu").reshape(args[0].shape)
        if func in _GROUPED:
            return args[0] @ args[1][0]
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool and index.dim() == 2


_GROUPED = tuple(
    function
    for place, name in ((torch, "_grouped_mm"), (torch.nn.functional, "grouped_mm"))
    if (function := getattr(place, name, None)) is not None  # older versions of torch have neither
)
