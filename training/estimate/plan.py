"""An estimate for a recipe: what it needs, whether it fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorary.adapters.base.device import pick_device, pick_dtype
from lorary.hub.base_files import resolve_base
from lorary.hub.errors import BaseNotFoundError, EstimateError, RecipeError, first_line
from lorary.hub.manifest import BaseIdentity
from lorary.training.data import Examples, load_data
from lorary.training.estimate.batches import Widths
from lorary.training.estimate.past import PastRuns
from lorary.training.estimate.run import CUDA_CONTEXT, RunCost, held_by_libraries, run_cost
from lorary.training.estimate.step import StepCost, step_cost
from lorary.training.fitting.memory_fallback import Batching
from lorary.training.model import Base, check_settings, refuse_other_kinds, with_tokens
from lorary.training.prepare import Prepared, encode_parts, meet
from lorary.training.progress import Reporter, quiet_libraries
from lorary.training.recipe import Recipe
from lorary.training.recipe.steps import with_enough_epochs
from lorary.training.strategies.inherit import inherit, inherited_recipe
from lorary.training.strategies.parent import Parent
from lorary.training.tasks import Task, make_task


@dataclass(frozen=True)
class Alternative:
    """Other settings, and the peak that they would have in bytes."""

    settings: tuple[str, ...]
    peak: int


@dataclass(frozen=True)
class Estimate:
    """What a run of a recipe costs, the device's memory in bytes, and what less would cost where that is too much."""

    recipe: Recipe
    device: torch.device
    cost: RunCost
    available: int
    alternatives: tuple[Alternative, ...]

    @property
    def fits(self) -> bool:
        """Does the peak stay within the device's memory?"""
        return self.cost.peak <= self.available

    @property
    def runs(self) -> int:
        """How many such runs the recipe asks for, one after the other: of its seeds, or its folds and all rows."""
        training = self.recipe.training
        return training.folds + 1 if training.folds else training.seeds


def estimate(
    recipe: Recipe, past: PastRuns | None = None, memory: int | None = None, progress: Reporter | None = None,
    parent: Parent | None = None, data: Examples | None = None,
) -> Estimate:  # fmt: skip
    """What a recipe will need, without loading the base's weights.

    Args:
        past: earlier runs; they tell the device's speed.
        memory: bytes to fit into; by default those of the recipe's device.
        progress: is told of notices about the rows.
        parent: the adapter that the recipe starts from; its rank and its targets are those of a run that continues it,
            and its tokens are there. What a stacked one holds, frozen, isn't counted.
        data: its rows, where they have been read already.

    Raises:
        RecipeError: settings that the method or the device doesn't take.
        DataError: as ``train``.
        BaseNotFoundError: no config or tokenizer of the base.
        TrainingError: the base can't be trained for the task, or not with these settings.
        EstimateError: see :func:`lorary.training.estimate.step.step_cost`.
    """
    from transformers import AutoConfig, AutoTokenizer

    reporter, asked = progress or Reporter(), recipe
    device = pick_device(recipe.device)
    check_settings(recipe)
    with quiet_libraries():
        data = data or load_data(recipe, reporter.note)
        path = resolve_base(recipe.base, revision=recipe.revision, weights=False).path
        try:
            config, tokenizer = AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise BaseNotFoundError(f"base {recipe.base!r}: {first_line(error)}") from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
        task, base = on_meta(recipe, data, tokenizer, config, parent)
        if parent is not None and recipe.start != "stack":
            recipe = inherited_recipe(recipe, base, inherit(parent, base, task, lambda line: None))
        import_trainer(task)
        rows = encode_parts(recipe, {"train": data.train}, task, base, reporter)[0]["train"]
        recipe = with_enough_epochs(recipe, len(rows.features))

        def step_of(variant: Recipe) -> tuple[StepCost, Widths]:
            task, base = on_meta(variant, data, tokenizer, config, parent)
            meet(variant, task, base, Reporter())
            longest = variant.training.max_length
            features = task.batched([task.shortened(feature, longest) for feature in rows.features])
            step = step_cost(
                variant, task, base.tokenizer, base.model.config, features,
                dtype=pick_dtype(device, variant.dtype), device=device, before=base.before,
            )  # fmt: skip
            return step, [task.widths(feature) for feature in features]

        def cost(variant: Recipe, step: tuple[StepCost, Widths], measure: bool) -> RunCost:
            known = past or PastRuns()
            return run_cost(variant, *step, device, known, libraries=libraries, measure=measure)

        step = step_of(recipe)
        libraries = held_by_libraries(device)  # once: this process grows with each variant that is tried
        whole = cost(recipe, step, measure=True)
        available = memory or memory_of(device)
        tried = [
            Alternative(_as_given(settings), cost(variant, step_of(variant), measure=False).peak)
            for settings, variant in (_variants(recipe, task.least_batch) if whole.peak > available else ())
            if _contradicts_nothing(asked, settings)
            if base.model.supports_gradient_checkpointing or not variant.training.gradient_checkpointing
        ]
    alternatives = tuple(other for other in tried if other.peak < whole.peak)
    return Estimate(recipe, device, whole, available, alternatives)


def import_trainer(task: Task) -> None:
    """Import what the run will import, so that what the libraries hold is counted."""
    import transformers.trainer  # noqa: F401

    if task.name == "text-generation":
        import trl  # noqa: F401


def memory_of(device: torch.device) -> int:
    """A device's memory in bytes: the GPU's, or the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)


def on_meta(recipe: Recipe, data: Examples, tokenizer: Any, config: Any, parent: Parent | None) -> tuple[Task, Base]:
    """The recipe's task, and its base on the meta device.

    Raises:
        TrainingError: the base can't be trained for the task.
    """
    task = make_task(recipe, data.labels, data.problem_type)
    task.begin(data.train)
    refuse_other_kinds(task, recipe, config)
    with torch.device("meta"):
        model = task.auto_class().from_config(config)
    task.check_base(model)
    base = Base(model, tokenizer, BaseIdentity(recipe.base), ())
    return task, with_tokens(base, recipe, parent.checkpoint if parent else None, lambda line: None)


def _variants(recipe: Recipe, least: int) -> Iterator[tuple[dict[str, Any], Recipe]]:
    """What would need less, one change at a time and then all together; batches as runs halve them."""
    training = recipe.training
    halved = [Batching(training.batch_size, training.gradient_accumulation)]
    while smaller := halved[-1].smaller(least):
        halved.append(smaller)
    batches = [{"batch_size": one.size, "gradient_accumulation": one.accumulation} for one in halved]
    checkpointing = {"gradient_checkpointing": True}
    if not training.gradient_checkpointing:
        yield _with(recipe, checkpointing)
    for batch in batches[1:2] + batches[2:][-1:]:  # once, and as far as that goes
        yield _with(recipe, batch)
    if training.max_length > 64:
        yield _with(recipe, {"max_length": training.max_length // 2})
    if recipe.quantization == "none" and recipe.method == "lora":
        yield _with(recipe, {}, qlora=True)
        yield _with(recipe, checkpointing | batches[-1], qlora=True)


def _with(recipe: Recipe, training: dict[str, Any], qlora: bool = False) -> tuple[dict[str, Any], Recipe]:
    """The settings by their dotted keys, and the recipe that has them."""
    top = {"method": "qlora", "quantization": "nf4"} if qlora else {}
    # The quantization follows from the method, but for who has said otherwise.
    told = {key: value for key, value in top.items() if key == "method" or key in recipe.model_fields_set}
    changed = recipe.training.model_copy(update=training)
    settings = told | {f"training.{name}": value for name, value in training.items()}
    return settings, recipe.model_copy(update={**top, "training": changed})


def _as_given(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings as ``--set`` takes them."""
    return tuple(f"{key}={str(value).lower()}" for key, value in settings.items())


def _contradicts_nothing(recipe: Recipe, settings: Mapping[str, Any]) -> bool:
    """Is it a recipe with these settings too, wherever its run would be written?"""
    try:
        recipe.changed({**settings, "output": None})
    except RecipeError:
        return False
    return True


def predict(prepared: Prepared) -> dict[str, int] | None:
    """What is kept with a run, to be held against what it takes: peak in bytes, operations, steps.

    None where it can't be told, which is no reason not to train.
    """
    recipe, base = prepared.recipe, prepared.base
    device = next(prepared.model.parameters()).device
    dtype = pick_dtype(device, recipe.dtype)
    features = prepared.task.batched(prepared.train.features)
    try:
        step = step_cost(
            recipe,
            prepared.task,
            base.tokenizer,
            base.model.config,
            features,
            dtype=dtype,
            device=device,
            before=base.before,
        )
    except EstimateError:
        return None
    widths = [prepared.task.widths(feature) for feature in features]
    cost = run_cost(recipe, step, widths, device, PastRuns(), libraries=held_by_libraries(device))
    # The base is in memory already, so what the process holds counts it too.
    loaded = step.weights if device.type == "cpu" else CUDA_CONTEXT
    return {"peak_memory_bytes": max(cost.peak - loaded, 0), "flops": cost.flops, "steps": cost.steps}
