"""The recipe by which an adapter is measured: rows are read and encoded as its manifest says that they were."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorary.adapters.adapter import task_of
from lorary.adapters.backbone.sources import Source
from lorary.adapters.heads.task_heads import LABELLED
from lorary.adapters.matching.fitting import labels_of
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.embedding import Embedding
from lorary.hub.errors import UsageError
from lorary.hub.manifest import MULTI_LABEL, REGRESSION, Manifest
from lorary.hub.tables.catalogue import named_base
from lorary.training.recipe import Recipe
from lorary.training.recipe.corpus import is_text
from lorary.training.recipe.data_files import kind_of
from lorary.training.recipe.place import demand_homes
from lorary.training.recipe.raw import RawRecipe, some
from lorary.training.recipe.schema import FLAG_OF
from lorary.training.recipe.sections import Training

_FROM_RECIPE: Mapping[str, tuple[str, ...]] = {
    "training": ("batch_size", "seed", "max_target_length", "mlm_probability", "whole_word_mask", "mean_span"),
    "generation": ("rows",),
    "preference": ("beta", "loss"),
    "prompt": ("learn",),
    "data": ("unlabelled", "label_separator", "sentence_column"),
}
"""Settings that only measuring asks for: of a manifest, its provenance alone has them, in the run's recipe."""

_OF_MANIFEST = ("max_length", "stride", "max_answer_length", "threshold")  # of the section training

_UNREAD = frozenset(
    {
        *("name", "domain", "from", "start", "method", "lora", "peft", "tokens", "report", "output", "tags", "alias"),
        *(f"data.{name}" for name in ("train", "license", "language")),
        *(f"data.{part}{end}" for part in ("test", "validation") for end in ("", "_size", "_split")),
        *(
            f"training.{name}"
            for name in Training.model_fields
            if name not in (*_FROM_RECIPE["training"], *_OF_MANIFEST)
        ),
    }
)
"""Settings that only training reads."""


def recipe_for(source: Source, data: str, flags: Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """The recipe that measures an adapter on the rows of ``data``; nothing is trained by it.

    Args:
        source: the adapter. One without a manifest is measured by its task's defaults.
        data: as ``data.train`` in a recipe; of a dataset with several splits the test split, unless
            ``data.train_split`` names another.
        flags: dotted keys and values, over what the adapter says.
        overrides: ``key=value`` texts, over both.

    Raises:
        UsageError: it names no base, and ``flags`` has none; ``data.labels`` doesn't name its labels; its texts begin
            with a prompt of sentence-transformers'; or a setting that only training reads.
        RecipeError: as :meth:`Recipe.load`.
    """
    demand_homes(RawRecipe("rows", {"data": {"train": data}}, {"data.train": FLAG_OF["data.train"]}))
    checkpoint, overrides = source.checkpoint, tuple(overrides)
    given = {*flags, *(override.partition("=")[0].strip() for override in overrides)}
    base = flags.get("base") or named_base(checkpoint)
    if unread := sorted(key for key in given if {key, key.partition(".")[0]} & _UNREAD):
        raise UsageError(f"--set {unread[0]}: nothing is trained, so it has no say here; leave it out")
    if base is None:
        raise UsageError(f"{source.reference} doesn't name its base; pass it with --base")
    task = task_of(checkpoint)
    told = {"name": source.name, "domain": "evaluation", "task": task, "base": base, "data.train": data}
    if not (Path(data).expanduser() / "state.json").is_file():  # a table that was saved alone has no splits
        told["data.train_split"] = "test"
    if checkpoint.manifest is not None:
        told |= _of_manifest(checkpoint.manifest) | _of_run(checkpoint.manifest, data, given)
    elif checkpoint.embedding is not None and task == "feature-extraction":
        told |= _of_embedding(checkpoint.embedding, source)
    told |= _of_labels(checkpoint, task, given)
    flags = {key: value for key, value in {**told, **flags}.items() if value is not None}
    return _with_own_labels(Recipe.from_flags(flags, overrides), source)


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


def _of_embedding(embedding: Embedding, source: Source) -> dict[str, Any]:
    """What sentence-transformers left of how texts become embeddings."""
    if embedding.prefix:
        raise UsageError(
            f"{source.reference} puts {embedding.prefix[:50]!r} before each text, which nothing here measures with; "
            "measure it with sentence-transformers"
        )
    return {
        "embedding.pooling": embedding.pooling.mode,
        "embedding.normalize": embedding.pooling.normalize,
        "training.max_length": embedding.max_length,
    }


def _of_labels(checkpoint: Checkpoint, task: str, given: set[str]) -> dict[str, Any]:
    """The labels' names, LABEL_0 and so on where only the head's shape tells of them; a head of one is regression's.

    ``given``: the settings that say otherwise.
    """
    if task not in LABELLED:
        return {}
    manifest = checkpoint.manifest
    labels = list(labels_of(checkpoint))
    problem = manifest.problem_type if manifest else (REGRESSION if len(labels) == 1 else None)
    told: dict[str, Any] = {"problem_type": problem}
    in_columns = problem == MULTI_LABEL and manifest is not None and "label" not in manifest.preprocessing.columns
    if "data.label_columns" in given:
        return {**told, "data.columns.label": None, "data.label_separator": None}
    if in_columns and not given & {"data.columns", "data.columns.label"}:
        return {**told, "data.label_columns": labels}
    return {**told, "data.labels": None if problem == REGRESSION else labels}


def _with_own_labels(recipe: Recipe, source: Source) -> Recipe:
    """The recipe with labels in the order of the adapter's head, by its names or by others in their place.

    Raises:
        UsageError: they are neither.
    """
    if recipe.task not in LABELLED or recipe.problem_type == REGRESSION:
        return recipe
    own, data = labels_of(source.checkpoint), recipe.data
    labels: Sequence[str] = data.label_columns or data.labels or own
    if set(labels) == set(own):
        labels = own
    elif len(labels) != len(own) or set(labels) & set(own):
        key = "data.label_columns" if data.label_columns else "data.labels"
        raise UsageError(
            f"{key}: {source.reference} answers with {some(own)}; name these, or as many others in this order, "
            f"found {some(labels)}"
        )
    told = {"label_columns" if data.label_columns else "labels": tuple(labels)}
    return recipe.model_copy(update={"data": data.model_copy(update=told)})


def _of_run(manifest: Manifest, data: str, given: Collection[str]) -> dict[str, Any]:
    """What the recipe that it was trained by says of measuring; ``given``: the settings that say otherwise."""
    recipe = manifest.provenance.get("recipe")
    if not isinstance(recipe, Mapping):
        return {}
    told: dict[str, Any] = {
        f"{section}.{name}": values.get(name)
        for section, names in _FROM_RECIPE.items()
        if isinstance(values := recipe.get(section), Mapping)
        for name in names
    }
    # Sentences of a .conll file end in blank lines, and other columns are those of another layout.
    if kind_of(Path(data)) == ".conll" or any(key.startswith("data.columns") for key in given):
        told.pop("data.sentence_column", None)
    if is_text(data) and isinstance(values := recipe.get("data"), Mapping):
        told["data.sample_by"] = values.get("sample_by")
    if "strategy" in recipe:
        told["strategy"] = "continual" if recipe["strategy"] == "continual" else "fine-tune"
    # A revision is the named base's, not that of whatever stands in for it.
    return told | ({} if "base" in given else {"revision": recipe.get("revision")})
