"""Where a regression head without a bias begins, as decoders have them: at the mean of the numbers.

Such a head is one product with a text's last state. It can't be given a mean, but states are alike enough that some
weights answer nearly 1 for each of them: on small Llamas and GPT-2s they miss it by 0.07 to 0.11, and where the last
norm has a bias there are weights that don't miss it at all. The mean times those is where the head begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lorary.training.fitting.evaluate import logits_by_row
from lorary.training.tasks.base import Task
from lorary.training.tasks.heads.scale import Scale
from lorary.training.tasks.rows.encoded import Encoded

_MOST_ROWS = 512  # that are looked at; more hardly change the weights, and their products are squared
_STRENGTHS = tuple(10.0**power for power in range(-10, 2))  # of the ridge, in mean squared singular values


@dataclass(frozen=True)
class Level:
    """``weights`` [inputs] whose product with a state is about 1, in float64.

    ``error``: by how much they miss it for states that they weren't fitted to (root of the mean square).
    """

    weights: torch.Tensor
    error: float

    @classmethod
    def of(cls, states: torch.Tensor) -> Level:
        """Ridge regression of 1 on ``states`` [rows, inputs], as strong as is best for rows that are left out."""
        u, s, v = torch.linalg.svd(states.double(), full_matrices=False)
        ones = torch.ones(len(states), dtype=torch.float64)
        found = []
        for strength in _STRENGTHS:
            kept = s.square() / (s.square() + strength * s.square().mean())
            # What each row is missed by when it is left out, without fitting again (Allen's PRESS).
            missed = (ones - u @ (kept * (u.T @ ones))) / (1 - (u.square() @ kept)).clamp(min=1e-12)
            weights = v.T @ (kept / s.clamp(min=1e-300) * (u.T @ ones))
            found.append(cls(weights, float(missed.square().mean().sqrt())))
        return min(found, key=lambda level: level.error)

    def carries(self, scale: Scale) -> bool:
        """Is the mean missed by less than the numbers differ anyway? Farther from zero, learning it all is no worse."""
        return abs(scale.mean) * self.error <= scale.deviation

    def begin(self, layer: torch.nn.Linear, scale: Scale, states: torch.Tensor) -> None:
        """Let a fresh ``layer`` answer about the mean, in deviations, for ``states``."""
        lacking = scale.mean / scale.deviation - float(
            (states.double() @ layer.weight[0].detach().double().cpu()).mean()
        )
        with torch.no_grad():
            layer.weight.add_((lacking * self.weights).to(layer.weight))


def final_states(model: Any, layer: torch.nn.Module, task: Task, rows: Encoded, tokenizer: Any) -> torch.Tensor:
    """What ``layer`` makes its answers of, for rows from all parts of ``rows``: [rows, inputs] on the CPU."""
    some = rows.pick(range(0, len(rows.examples), -(-len(rows.examples) // _MOST_ROWS)))
    handle = layer.register_forward_hook(lambda module, inputs, output: inputs[0])  # the class picks the token
    try:
        found = logits_by_row(model, task, some, tokenizer, task.recipe.training.batch_size)
        return torch.stack([state.float().cpu() for _, (state,) in found])
    finally:
        handle.remove()
