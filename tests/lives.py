"""Runs that are killed at chosen moments, each life in a process of its own."""

from __future__ import annotations

# Imports everything once, and makes each life of a run a forked process of its own.
LIVES = """
import dataclasses, gc, json, os, signal, sys, torch
torch.set_num_threads(1)
import datasets, peft, sklearn.metrics, sqlite_utils, transformers.pipelines, transformers.trainer
import lorary.training.report.build
from lorary.hub.errors import LoraryError
from lorary.hub.registry import Registry
from lorary.training import Recipe, train
from lorary.training.experiments.ablation import ablate
from lorary.training.experiments.curve import learning_curve
from lorary.training.experiments.session import Session
from lorary.training.fitting import checkpointer, fit
from lorary.training.unfinished import Unfinished
from stops import Signal

def kill_in(module, name, call):
    inner, calls = getattr(module, name), [0]
    def replaced(*arguments, **settings):
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*arguments, **settings)
    setattr(module, name, replaced)

def curve(*order):
    return told(learning_curve(order[0], order[1], points=2, seeds=2, progress=order[2], resume=order[3]))

def ablation(*order):
    return told(ablate(order[0], order[1], seeds=2, progress=order[2], resume=order[3]))

def told(value):
    return json.dumps(dataclasses.asdict(value), sort_keys=True)

works = {"train": lambda *order: train(*order).digest, "curve": curve, "ablate": ablation}
places = {
    "torch.save": (torch, 5), "commit": (checkpointer, 3), "prune": (checkpointer, 2), "forget": (Session, 1),
    "note_fact": (Unfinished, 1),
}
gc.freeze()  # a run's end looks for garbage: not among the libraries' own objects
for line in sys.stdin:
    order = json.loads(line)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        at = order.get("at", "")
        if at in places:
            kill_in(places[at][0], at.removeprefix("torch."), places[at][1])
        try:
            answer = works[order.get("what", "train")](
                Recipe.load(order["recipe"]), Registry(order["registry"]), Signal(at, signal.SIGKILL),
                order.get("resume", False),
            )
        except LoraryError as error:
            answer = str(error)
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    answer = os.fdopen(reader).read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), answer]), flush=True)
"""
