"""Imports what a training does, most of which it imports when it comes to it: ``lorary`` first, as in a run."""

import importlib

from lorary.training import train  # noqa: F401

for _name in (
    "lorary.hub.cli.commands.train",
    "lorary.training.run",
    "lorary.training.fitting.fit",
    "lorary.training.pretraining.run",
    "lorary.training.report.build",
    "lorary.training.experiments.ablation",
    "lorary.training.experiments.curve",
    "datasets",
    "peft",
    "seqeval.metrics",
    "sklearn.metrics",
    "sqlite_utils",
    "transformers.pipelines",
    "transformers.trainer",
):
    importlib.import_module(_name)

importlib.import_module("torch").set_num_threads(1)
