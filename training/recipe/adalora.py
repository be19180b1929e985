"""AdaLoRA's settings and its schedule (Zhang et al. 2023): how long its ranks stay, are taken away, and are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorary.training.recipe.raw import section

INIT_R, TARGET_R = 12, 8
"""PEFT's own: each module's at the beginning, and their mean at the end."""

TINIT, TFINAL = 0.1, 0.3
"""The shares of the steps before the first rank is taken away and after the last one, unless the recipe says more.

They leave more than half of the steps to taking ranks away, as the paper's authors advise.
"""

Problems = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Schedule:
    """``tinit`` steps with all ranks, some over which they are taken away, and ``tfinal`` with those that are left."""

    tinit: int
    tfinal: int
    steps: int

    @classmethod
    def of(cls, peft: Mapping[str, Any], steps: int) -> Schedule:
        """That of a run of so many steps, by the recipe's ``peft``."""
        tinit, tfinal = int(TINIT * steps), max(1, round(TFINAL * steps))
        return cls(peft.get("tinit", tinit), peft.get("tfinal", tfinal), steps)

    @property
    def last(self) -> int:
        """The step, counted from 0, at which ranks are taken away for the last time."""
        return self.steps - self.tfinal

    @property
    def problem(self) -> str | None:
        """Why it can't be: there are too few steps."""
        if self.tinit < self.last:
            return None
        return (
            f"adalora keeps all ranks for the first {self.tinit} steps (peft.tinit) and trains those that are left in "
            f"the last {self.tfinal} (peft.tfinal), and of the run's {self.steps} none remains to take ranks away in; "
            "lower them, or train longer"
        )


def with_ranks(peft: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the ranks and the alpha that the recipe leaves out: twice the rank, as for LoRA."""
    filled = {"init_r": INIT_R, "target_r": TARGET_R, **peft}
    if _whole(filled["init_r"], 1):
        filled.setdefault("lora_alpha", 2 * filled["init_r"])
    return filled


def adalora_problems(values: Mapping[str, Any]) -> Problems:
    """What is wrong with the settings of ``method: adalora``, each with its dotted key."""
    peft = section(values, "peft")
    if "total_step" in peft:
        yield "peft.total_step", "the run sets it, to the number of its steps; leave it out"
    ranks = {key: peft.get(key, default) for key, default in (("init_r", INIT_R), ("target_r", TARGET_R))}
    bad = {key: value for key, value in ranks.items() if not _whole(value, 1)}
    yield from ((f"peft.{key}", f"expected a rank, 1 or more, found {value!r}") for key, value in bad.items())
    if not bad and ranks["target_r"] >= ranks["init_r"]:
        yield (
            "peft.target_r",
            f"the mean rank at the end, {ranks['target_r']}, has to be below the one that each module begins with, "
            f"peft.init_r {ranks['init_r']}; for ranks that stay, use method: lora",
        )
    for key, least in (("tinit", 0), ("tfinal", 1), ("deltaT", 1)):
        if key in peft and not _whole(peft[key], least):
            yield f"peft.{key}", f"expected a number of steps, {least} or more, found {peft[key]!r}"
    for key in ("beta1", "beta2"):
        if key in peft and not (_number(peft[key]) and 0 < peft[key] < 1):
            yield f"peft.{key}", f"expected a number between 0 and 1, found {peft[key]!r}"
    if "orth_reg_weight" in peft and not (_number(peft["orth_reg_weight"]) and peft["orth_reg_weight"] >= 0):
        yield "peft.orth_reg_weight", f"expected a number, 0 or more, found {peft['orth_reg_weight']!r}"
    if "lora_alpha" in peft and not (_number(peft["lora_alpha"]) and peft["lora_alpha"] > 0):
        yield "peft.lora_alpha", f"expected a number above 0, found {peft['lora_alpha']!r}"
    if "lora_dropout" in peft and not (_number(peft["lora_dropout"]) and 0 <= peft["lora_dropout"] < 1):
        yield "peft.lora_dropout", f"expected a share below 1, found {peft['lora_dropout']!r}"
    steps = section(values, "training").get("max_steps")
    given = [peft[key] for key in ("tinit", "tfinal") if key in peft]
    fits = all(_whole(value, 0) for value in given)
    if fits and isinstance(steps, int) and steps > 0 and (problem := Schedule.of(peft, steps).problem):
        yield "training.max_steps", problem


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
