"""Imports what a training does, most of which it imports when it comes to it: ``lorary`` first, as in a run."""

import importlib

from lorary.training import train  # noqa: F401

for _name in (
    "lorary.hub.cli.commands.train",
    "lorary.training.estimate.run",
    "lorary.training.run",
    "lorary.training.fitting.fit",
    "lorary.training.pretraining.run",
    "lorary.training.report.build",
    "lorary.training.experiments.ablation",
    "lorary.training.experiments.curve",
    "datasets",
    "peft.tuners.lora.bnb",
    "seqeval.metrics",
    "sklearn.metrics",
    "sqlite_utils",
    "torch.distributed.algorithms.ddp_comm_hooks.default_hooks",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "transformers.pipelines.text_classification",
    "transformers.trainer",
    "trl.trainer.sft_trainer",
):
    importlib.import_module(_name)

importlib.import_module("torch").set_num_threads(1)
importlib.import_module("lorary.adapters.kernel.mixed_rows").kernel()  # or each would compile it, in a home of its own
