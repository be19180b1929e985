"""How an adapter is asked while it is measured: by its manifest, with what the evaluation's settings say otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorary.hub.checkpoint import GOLDEN_NAME, Checkpoint
from lorary.hub.manifest import BaseIdentity, Manifest, Numerics
from lorary.training.recipe import Recipe
from lorary.training.tasks import Task


def as_measured(checkpoint: Checkpoint, recipe: Recipe, task: Task, tokenizer: Any, max_length: int) -> Checkpoint:
    """The checkpoint with the manifest by which the loader shall ask it.

    Without this, other lengths, prompts and labels than the adapter's own would change how rows are encoded and not
    what ``predict`` and ``generate`` do with them, and an adapter without a manifest would be asked as the loader does
    who knows neither rows nor task: by softmax for any number of labels, with no prompt at all.

    Args:
        recipe: from :func:`~lorary.training.evaluation.recipe.recipe_for`.
        task: its task, which has seen the rows.
        tokenizer: that of the adapter's rows.
        max_length: the most tokens of a row.
    """
    own, answering, thresholds = checkpoint.manifest, task.answering(), None
    if own is not None:
        thresholds = own.thresholds
        if answering is not None and own.answering is not None:
            # Whether it may give no answer is what it has learned, not what these rows ask.
            answering = replace(answering, impossible=own.answering.impossible)
    if recipe.training.threshold is not None:
        thresholds = task.thresholds()
    files, told = checkpoint.files, own
    if told is None:
        told = Manifest(task.name, BaseIdentity(recipe.base), numerics=Numerics(recipe.base_quantization))
        files = {name: path for name, path in files.items() if name != GOLDEN_NAME}  # of rows that nobody tells of
    return replace(
        checkpoint,
        files=files,
        manifest=replace(
            told,
            labels=task.labels or None,
            problem_type=task.problem_type,
            preprocessing=task.preprocessing(max_length),
            prompt=task.prompt(tokenizer),
            pooling=task.pooling(),
            generation=task.generation(),
            answering=answering,
            thresholds=thresholds,
        ),
    )
