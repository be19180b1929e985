"""Combining several adapters' updates at one site into one, by the kinds of PEFT's ``add_weighted_adapter``.

PEFT combines adapters inside a model that has them all; here the factors are combined where they lie. The products are
PEFT's: ``linear`` and its kin (task arithmetic, Ilharco et al. 2023; TIES, Yadav et al. 2023; DARE, Yu et al. 2024) act
on A and B apart, each with the root of the weight; those that end in ``svd`` act on B A and factor the result again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorary.adapters.arguments import is_number, whole_number
from lorary.adapters.layer.slots import LowRank
from lorary.hub.errors import BlendError, UsageError

_ON_FACTORS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
COMBINATIONS = ("cat", "svd", *_ON_FACTORS, *(f"{kind}_svd" for kind in _ON_FACTORS[1:]))
"""``cat`` alone is the exact weighted sum, at the sum of the ranks; ``svd`` is the nearest to it of a given rank."""

MAJORITY_SIGNS = ("total", "frequency")


@dataclass(frozen=True)
class Combination:
    """How adapters are combined.

    ``density``: the share of values that the pruning kinds keep, above 0 and at most 1. ``rank``: that of the result,
    for the kinds that end in svd; the largest of the adapters' where it is None. ``majority_sign``: how the TIES kinds
    elect a sign, by ``total`` magnitude or by ``frequency``. ``seed``: which values the DARE kinds drop.

    Raises:
        UsageError: an unknown kind, or a setting that it lacks, can't have, or wouldn't read.
    """

    kind: str = "cat"
    density: float | None = None
    rank: int | None = None
    majority_sign: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in COMBINATIONS:
            raise UsageError(f"unknown combination {self.kind!r}; expected one of {', '.join(COMBINATIONS)}")
        if self.prunes and self.density is None:
            raise UsageError(f"combination {self.kind!r} needs a density, the share of values to keep, such as 0.5")
        if self.density is not None and not (is_number(self.density) and 0 < self.density <= 1):
            raise UsageError(f"density={self.density!r}: expected a number above 0 and at most 1")
        if self.rank is not None:
            whole_number("rank", self.rank)
        if self.seed is not None:
            whole_number("seed", self.seed, least=-(2**63), most=2**64 - 1)  # what torch takes
        if self.majority_sign is not None and self.majority_sign not in MAJORITY_SIGNS:
            raise UsageError(f"majority_sign={self.majority_sign!r}: expected one of {', '.join(MAJORITY_SIGNS)}")
        read = {"density": self.prunes, "rank": self.refactors, "majority_sign": self.elects, "seed": self.draws}
        for setting, is_read in read.items():
            if getattr(self, setting) is not None and not is_read:
                raise UsageError(f"combination {self.kind!r} doesn't read {setting}; leave it out")

    @property
    def prunes(self) -> bool:
        """Does it keep only a part of each adapter's values?"""
        return self.kind not in ("cat", "linear", "svd")

    @property
    def refactors(self) -> bool:
        """Does it factor the combined product again?"""
        return self.kind.endswith("svd")

    @property
    def elects(self) -> bool:
        """Does it drop values against the majority's sign?"""
        return "ties" in self.kind

    @property
    def draws(self) -> bool:
        """Does it drop values at random?"""
        return self.kind.startswith("dare")

    def settings(self) -> dict[str, float | int | str]:
        """What the kind reads, for provenance."""
        every = {
            "density": (self.prunes, self.density),
            "rank": (self.refactors, self.rank),
            "majority_sign": (self.elects, self.majority_sign or MAJORITY_SIGNS[0]),
            "seed": (self.draws, self.seed or 0),
        }
        return {name: value for name, (is_read, value) in every.items() if is_read and value is not None}


class Combiner:
    """Combines the sites of one blend, in one order: what the DARE kinds drop depends on it and on the seed alone.

    ``largest_rank`` is that of the adapters', for a result whose rank isn't given.
    """

    def __init__(self, how: Combination, largest_rank: int) -> None:
        self._how = how
        self._rank = how.rank or largest_rank
        # Its own, so that it neither disturbs nor depends on what other threads draw.
        self._random = torch.Generator().manual_seed(how.seed or 0)

    def combine(self, updates: Sequence[LowRank], weights: Sequence[float], site: str) -> LowRank:
        """The combined update, float32, with the scale 1.

        A bias is linear in its adapter, so biases are summed by weight whatever the kind.

        Raises:
            BlendError: the kind needs equal ranks and they differ; ``site`` names the module.
        """
        kept = [update.a.float() for update in updates], [update.b.float() for update in updates]
        scaled = [weight * update.scale for weight, update in zip(weights, updates, strict=True)]
        if self._how.kind == "cat":
            a, b = _concatenate(*kept, scaled)
        elif self._how.kind == "svd":
            a, b = _truncate(*_concatenate(*kept, scaled), self._rank)
        elif self._how.refactors:
            # The scale belongs to what is pruned and elected by, the weight doesn't.
            deltas = [update.scale * (b @ a) for update, a, b in zip(updates, *kept, strict=True)]
            a, b = _factor(self._mix(deltas, weights), self._rank)
        else:
            if len(ranks := {update.rank for update in updates}) > 1:
                raise BlendError(
                    f"combination {self._how.kind!r} needs equal ranks; at {site!r} they are "
                    f"{' and '.join(map(str, sorted(ranks)))}; use 'cat', 'svd' or another kind that ends in svd"
                )
            roots = [math.sqrt(abs(weight)) for weight in scaled]
            signed = [math.copysign(root, weight) for root, weight in zip(roots, scaled, strict=True)]
            a, b = self._mix(kept[0], signed), self._mix(kept[1], roots)
        return LowRank(a.contiguous(), b.contiguous(), _sum_biases(updates, scaled), 1.0)

    def _mix(self, tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        """Tensors of one shape, combined element by element."""
        kind, density = self._how.kind.removesuffix("_svd"), self._how.density
        factors = torch.tensor(weights, dtype=torch.float32, device="cpu")
        if kind == "linear":
            return _weighted_sum(tensors, weights)
        # Importing peft takes seconds, which the kinds above don't need.
        from peft.utils import merge_utils

        sign = self._how.majority_sign or MAJORITY_SIGNS[0]
        mixed: torch.Tensor
        if kind == "magnitude_prune":
            mixed = merge_utils.magnitude_prune(list(tensors), factors, density)
        elif kind == "ties":
            mixed = merge_utils.ties(list(tensors), factors, density, sign)
        elif kind == "dare_linear":
            mixed = merge_utils.task_arithmetic([self._drop(tensor) for tensor in tensors], factors)
        else:
            stacked = torch.stack([self._drop(tensor) for tensor in tensors])
            elected = merge_utils.calculate_majority_sign_mask(stacked, sign)
            mixed = merge_utils.disjoint_merge(stacked * factors.view(-1, *[1] * (stacked.ndim - 1)), elected)
        return mixed

    def _drop(self, tensor: torch.Tensor) -> torch.Tensor:
        """DARE's drop and rescale. PEFT's own draws from the process's one generator, which other threads use too."""
        density = self._how.density
        assert density is not None
        return tensor * torch.bernoulli(torch.full_like(tensor, density), generator=self._random) / density


def size(update: LowRank) -> float:
    """The Frobenius norm of an update, scale * B A, without making the product; and of its bias."""
    a, b = update.a.double(), update.b.double()
    squared = float(((b.T @ b) * (a @ a.T)).sum())
    if update.bias is not None:
        squared += float(update.bias.double().square().sum())
    return abs(update.scale) * math.sqrt(max(squared, 0.0))


def _weighted_sum(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    return torch.stack([weight * tensor for tensor, weight in zip(tensors, weights, strict=True)]).sum(dim=0)


def _concatenate(
    a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], weights: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([weight * tensor for tensor, weight in zip(a, weights, strict=True)]), torch.cat(list(b), dim=1)


def _truncate(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best factors of ``rank`` for B A.

    By a QR of each and the SVD of a small matrix between them: the SVD of the product itself, which is as large as the
    module's weight, has the same singular values and takes a thousand times as long.
    """
    left, upper = torch.linalg.qr(b.double())
    right, lower = torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    rank = min(rank, s.shape[0])
    return (vh[:rank] @ right.T).float(), (left @ (u[:, :rank] * s[:rank])).float()


def _factor(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best factors of ``rank`` for a dense update [outputs, inputs]."""
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return vh[:rank], u[:, :rank] * s[:rank]


def _sum_biases(updates: Sequence[LowRank], weights: Sequence[float]) -> torch.Tensor | None:
    biased = [
        (weight, update.bias.float())
        for update, weight in zip(updates, weights, strict=True)
        if update.bias is not None
    ]
    if not biased:
        return None
    return _weighted_sum([bias for _, bias in biased], [weight for weight, _ in biased])
