"""The recipe by which an adapter is measured: rows are read and encoded as its manifest says that they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from lorary.adapters.adapter import task_of
from lorary.adapters.backbone.sources import Source
from lorary.adapters.heads.task_heads import LABELLED
from lorary.adapters.matching.fitting import labels_of
from lorary.hub.checkpoint import RECIPE_NAME, Checkpoint
from lorary.hub.errors import UsageError
from lorary.hub.manifest import REGRESSION, Manifest
from lorary.hub.tables.catalogue import named_base
from lorary.training.recipe import Recipe
from lorary.training.recipe.raw import read_recipe

_FROM_RECIPE: Mapping[str, tuple[str, ...]] = {
    "data": ("label_columns", "sample_by", "subset"),
    "training": ("batch_size", "seed", "max_target_length", "mlm_probability", "whole_word_mask", "mean_span"),
    "generation": ("rows",),
    "preference": ("beta", "loss"),
    "prompt": ("learn",),
}
"""Settings that only measuring asks for: manifests don't have them, the run's recipe beside the weights does."""


def recipe_for(source: Source, data: str, flags: Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """The recipe that measures an adapter on the rows of ``data``; nothing is trained by it.

    Args:
        source: the adapter. One without a manifest is measured by its task's defaults.
        data: as ``data.train`` in a recipe.
        flags: dotted keys and values, over what the adapter says.
        overrides: ``key=value`` texts, over both.

    Raises:
        UsageError: it names no base, and ``flags`` has none.
        RecipeError: as :meth:`Recipe.load`.
    """
    checkpoint = source.checkpoint
    base = flags.get("base") or named_base(checkpoint)
    if base is None:
        raise UsageError(f"{source.reference} doesn't name its base; pass it with --base")
    told = {"name": source.name, "domain": "evaluation", "task": task_of(checkpoint), "base": base, "data.train": data}
    told |= _of_labels(checkpoint)
    if checkpoint.manifest is not None:
        told |= _of_manifest(checkpoint.manifest)
    told |= _of_recipe(checkpoint)
    return Recipe.from_flags({key: value for key, value in {**told, **flags}.items() if value is not None}, overrides)


def _of_manifest(manifest: Manifest) -> dict[str, Any]:
    rows, prompt, numerics = manifest.preprocessing, manifest.prompt, manifest.numerics.quantization
    told: dict[str, Any] = {
        "quantization": numerics.removesuffix("-single"),
        "double_quantization": False if numerics.endswith("-single") else None,
        "data.source_lang": rows.source_lang,
        "data.target_lang": rows.target_lang,
        "training.max_length": rows.max_length,
        "training.stride": rows.stride,
        "training.max_answer_length": manifest.answering.max_tokens if manifest.answering else None,
        **{f"data.columns.{role}": column for role, column in rows.columns.items()},
    }
    if manifest.task in ("summarization", "translation"):
        told["prompt.prefix"] = rows.prefix
    for section, values in (("prompt", prompt), ("generation", manifest.generation)):
        told |= {f"{section}.{name}": value for name, value in (asdict(values) if values else {}).items()}
    if manifest.pooling is not None:
        told |= {"embedding.pooling": manifest.pooling.mode, "embedding.normalize": manifest.pooling.normalize}
    return told


def _of_labels(checkpoint: Checkpoint) -> dict[str, Any]:
    """The labels' names, LABEL_0 and so on where only the head's shape tells of them; a head of one is regression's."""
    task, manifest = task_of(checkpoint), checkpoint.manifest
    if task not in LABELLED:
        return {}
    labels = labels_of(checkpoint)
    problem = manifest.problem_type if manifest else (REGRESSION if len(labels) == 1 else None)
    return {"problem_type": problem, "data.labels": None if problem == REGRESSION else list(labels)}


def _of_recipe(checkpoint: Checkpoint) -> dict[str, Any]:
    file = checkpoint.files.get(RECIPE_NAME)
    if file is None:
        return {}
    values = read_recipe(file).values
    told = {
        f"{section}.{name}": values[section].get(name)
        for section, names in _FROM_RECIPE.items()
        if isinstance(values.get(section), dict)
        for name in names
    }
    if values.get("strategy") == "continual":
        told["strategy"] = "continual"
    return told | {"revision": values.get("revision")}
