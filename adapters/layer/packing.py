"""Packed sequences: one row that holds many sequences, one after the other, each with its own adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorary.adapters.arguments import is_whole, listed
from lorary.hub.errors import RoutingError, UsageError


class Packing:
    """How a packed row is made up.

    Args:
        lengths: the tokens of each sequence, in the order in which they stand; padding is a sequence of the bare
            backbone.
        kept: which sequences have their last token taken through the model's output layer, where that layer sees those
            tokens alone (transformers' ``logits_to_keep``); None where it sees every token.
    """

    def __init__(self, lengths: Sequence[int], kept: Sequence[int] | None = None) -> None:
        self.lengths = tuple(listed(lengths, "the tokens of each sequence"))
        self.kept = None if kept is None else tuple(kept)
        # Replaced as a whole: modules that are given the same tensor are to find the same flat one, in any thread.
        self._last: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def demand(self, sequences: int) -> None:
        """Check that there is a length for each of ``sequences``.

        Raises:
            UsageError: there isn't, or one of them is below 1.
        """
        if len(self.lengths) != sequences:
            raise UsageError(f"{len(self.lengths)} lengths for {sequences} adapters: expected one for each sequence")
        if not all(is_whole(length) and length >= 1 for length in self.lengths):
            raise UsageError(
                f"lengths {list(self.lengths)}: expected whole numbers, at least one token in each sequence"
            )

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        """A layer's input [1, tokens, inputs] as [tokens, inputs], and token ids [1, tokens] as [tokens]."""
        version = 0 if x.is_inference() else x._version
        last = self._last
        if last is None or last[0] is not x or last[1] != version:
            last = self._last = x, version, (x.flatten(0, -2) if x.is_floating_point() else x.flatten())
        return last[2]

    def token_slots(self, slots: Sequence[int], count: int) -> list[int]:
        """The slot of each of a layer's ``count`` tokens, from those of the sequences.

        Raises:
            RoutingError: the layer sees neither the row's tokens nor the kept ones.
        """
        if count == sum(self.lengths):
            return [slot for slot, length in zip(slots, self.lengths, strict=True) for _ in range(length)]
        if self.kept is not None and count == len(self.kept):
            return [slots[sequence] for sequence in self.kept]
        raise RoutingError(
            f"a layer sees {count} tokens of a packed row of {sum(self.lengths)}, so its sequences can't be told "
            "apart; pass lengths that add up to the row (padding as a sequence of its own), or one sequence at a time"
        )
