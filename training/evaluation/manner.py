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
    own, asked = checkpoint.manifest, task.in_manifest(tokenizer, max_length)
    if recipe.training.threshold is None:
        asked["thresholds"] = own.thresholds if own is not None else None
    if own is not None and own.answering is not None and asked["answering"] is not None:
        # Whether it may give no answer is what it has learned, not what these rows ask.
        asked["answering"] = replace(asked["answering"], impossible=own.answering.impossible)
    if own is not None:
        return replace(checkpoint, manifest=replace(own, **asked))
    manifest = Manifest(task.name, BaseIdentity(recipe.base), numerics=Numerics(recipe.base_quantization), **asked)
    files = {name: path for name, path in checkpoint.files.items() if name != GOLDEN_NAME}  # of rows nobody tells of
    return replace(checkpoint, files=files, manifest=manifest)
