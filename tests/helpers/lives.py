"""Runs that are killed at chosen moments, each life in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from typing import Any

import torch

from lorary.hub.errors import LoraryError
from lorary.hub.registry import Registry
from lorary.training import Recipe, train
from lorary.training.__main__ import main
from lorary.training.experiments.ablation import ablate
from lorary.training.experiments.curve import learning_curve
from lorary.training.experiments.session import Session
from lorary.training.fitting import checkpointer
from lorary.training.fitting.step_rows import StepRows
from lorary.training.pretraining import PretrainRecipe
from lorary.training.pretraining.run import pretrain
from lorary.training.unfinished import Unfinished
from stops import Signal

# The moments that no reporter hears of: in which call of which function.
PLACES = {
    "torch.save": (torch, 5), "commit": (checkpointer, 3), "prune": (checkpointer, 2), "forget": (Session, 1),
    "note_fact": (Unfinished, 1),
}  # fmt: skip


def live(what: str, recipe: str, registry: str, at: str, resume: Any) -> None:
    """One life of a run: killed at the moment ``at``, or printing what came of it."""
    if at in PLACES:
        _kill_in(PLACES[at][0], at.removeprefix("torch."), PLACES[at][1])
    order = Registry(registry), Signal(at, signal.SIGKILL), resume
    try:
        print(_work(what, recipe, *order), end="")
    except LoraryError as error:
        print(error, end="")


def lost(arguments: list[str]) -> int:
    """One of several processes, which is killed in its fifth step."""
    _kill_in(StepRows, "on_step_begin", 5)
    return main(arguments)


def _work(what: str, recipe: str, registry: Registry, reporter: Signal, resume: Any) -> str:
    if what == "pretrain":
        return pretrain(PretrainRecipe.load(recipe), registry, reporter, resume).digest
    if what == "train":
        return train(Recipe.load(recipe), registry, reporter, resume).digest
    compare = {"curve": (learning_curve, {"points": 2}), "ablate": (ablate, {})}
    function, settings = compare[what]
    made = function(Recipe.load(recipe), registry, seeds=2, progress=reporter, resume=resume, **settings)
    return json.dumps(dataclasses.asdict(made), sort_keys=True)


def _kill_in(module: Any, name: str, call: int) -> None:
    inner, calls = getattr(module, name), 0

    def replaced(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*arguments, **settings)

    setattr(module, name, replaced)
