"""Which rows a training step is made of, and what is wrong with them when its loss isn't a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from lorary.training.distributed import ALONE, Group
from lorary.training.fitting.losses import IGNORED
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.rows.made_rows import MadeRows

_ROW = "row_number"
SHOWN = 8
"""How many rows a message names."""

LARGE = 1e6
"""A number to learn beyond this is named as a likely cause."""


class StepRows(TrainerCallback):
    """Follows the rows through the collator, and keeps the losses of the batches of the step under way."""

    def __init__(self, trainer: Any, train: Encoded, group: Group = ALONE) -> None:
        self._group = group
        self._train = train
        self._batches: list[tuple[Sequence[int] | None, torch.Tensor]] = []
        rows = trainer.train_dataset
        # Rows that were packed into sequences, or cut into windows, can't be told by their number.
        if len(rows) == len(train.features) == len(train.examples):
            made = isinstance(rows, MadeRows)
            trainer.train_dataset = _WithNumbers(rows) if made else rows.add_column(_ROW, list(range(len(rows))))
        trainer.data_collator = _Numbered(trainer.data_collator)
        step = trainer.training_step

        def training_step(model: Any, inputs: Any, *arguments: Any, **settings: Any) -> torch.Tensor:
            numbers = inputs.pop(_ROW, None)
            loss: torch.Tensor = step(model, inputs, *arguments, **settings)
            self._batches.append((None if numbers is None else numbers.tolist(), loss))
            return loss

        trainer.training_step = training_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A new step: the last one's rows are forgotten."""
        self._batches.clear()

    def numbers(self) -> list[int]:
        """The step's rows by their index: of the batches whose loss isn't a number, or of all where each is one."""
        mine = [(numbers, float(loss)) for numbers, loss in self._batches if numbers is not None]
        known = self._group.gathered(mine)
        wrong = [numbers for numbers, loss in known if not math.isfinite(loss)]
        return sorted({index for numbers in wrong or [numbers for numbers, _ in known] for index in numbers})

    def places(self) -> str:
        """The step's rows as a message names them; empty where they aren't known."""
        places = [self._train.examples[index].place for index in self.numbers()]
        more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        return "; ".join(places[:SHOWN]) + more

    def oddities(self) -> list[str]:
        """What the step's rows themselves have that can make a loss that isn't a number."""
        found = []
        for index in self.numbers():
            place, labels = self._train.examples[index].place, _labels(self._train.features[index])
            if labels and all(label == IGNORED for label in labels):
                found.append(f"{place} has nothing to learn in it")
            if any(not math.isfinite(label) or abs(label) > LARGE for label in labels):
                found.append(f"{place} has a number to learn as large as {max(labels, key=abs):g}")
        return found[:SHOWN]


class _WithNumbers:
    """Rows that are made when they are asked for, each with its number."""

    def __init__(self, rows: MadeRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Feature:
        return {**self._rows[index], _ROW: index}


class _Numbered:
    """A collator that lets the rows' numbers through beside what the collator within makes of the rows."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, features: list[Feature]) -> Any:
        numbers = [feature.pop(_ROW, None) for feature in features]
        batch = self._inner(features)
        if None not in numbers:
            batch[_ROW] = torch.tensor(numbers)
        return batch


def _labels(feature: Feature) -> list[float]:
    labels = feature.get("labels")
    values = labels if isinstance(labels, (list, tuple)) else [labels]
    return [float(value) for value in values if isinstance(value, (int, float))]
