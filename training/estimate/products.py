"""How many operations the products of a computation take, counted as it runs."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Products(TorchDispatchMode):
    """Counts by torch's own formulas. A context manager; ``flops`` are operations, two to a multiplication and sum.

    torch's ``FlopCounterMode`` tells modules apart, too, and with that keeps alive what checkpointing lets go: under
    it the memory of the same step couldn't be counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result
