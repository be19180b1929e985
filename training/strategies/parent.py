"""The adapter that a run starts from, found and held against the recipe before any data are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.adapters.adapter import task_of
from lorary.adapters.backbone.sources import find_checkpoint
from lorary.adapters.matching.support import asks_for_peft, check_supported, fields_for_peft
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import RecipeError
from lorary.hub.registry import Registry
from lorary.hub.values import Version
from lorary.training.recipe import Recipe


@dataclass(frozen=True)
class Parent:
    """The adapter that a recipe's ``from`` names; ``version`` is its entry in the catalogue, where it has one."""

    reference: str
    checkpoint: Checkpoint
    version: Version | None

    @property
    def task(self) -> str:
        """The task that it was trained for."""
        return task_of(self.checkpoint)

    def provenance(self, start: str | None) -> dict[str, Any]:
        """What the child's manifest says of it: no folder of this machine."""
        reference = self.version.reference if self.version else Path(self.reference).name
        return {"reference": reference, "digest": self.checkpoint.digest, "start": start}


def find_parent(recipe: Recipe, registry: Registry) -> Parent | None:
    """The adapter that the recipe starts from; None where it starts from none.

    Raises:
        UnknownReferenceError: ``from`` names nothing.
        CheckpointError: what it names can't be read, or is no adapter that the loader knows.
        RecipeError: it can't be trained further, or not at the recipe's settings; every contradiction is listed.
    """
    if recipe.from_ is None:
        return None
    source = find_checkpoint(recipe.from_, registry)
    check_supported(source.checkpoint)
    digest = source.digest or source.checkpoint.digest
    version = next(iter(registry.with_digest(digest)), None)
    if source.digest is not None:
        version = registry.resolve(source.reference)
    parent = Parent(source.reference, source.checkpoint, version)
    problems = list(_problems(recipe, parent))
    if problems:
        raise RecipeError(f"{recipe.name}, from {parent.reference}", problems)
    return parent


def _problems(recipe: Recipe, parent: Parent) -> Iterator[str]:
    config = parent.checkpoint.config
    adds = _adds_tokens(parent.checkpoint)
    if asks_for_peft(parent.checkpoint) and not adds:
        what = ", ".join([parent.checkpoint.peft_type, *fields_for_peft(parent.checkpoint)])
        yield (
            f"from: {parent.reference} isn't low-rank weights alone (PEFT's {what}); "
            "only low-rank weights can be continued or stacked"
        )
        return
    if recipe.strategy != "intermediate" and parent.task != recipe.task:
        yield (
            f"strategy: {recipe.strategy!r} goes on with an adapter of the same task; {parent.reference} was trained "
            f"for {parent.task}, the recipe says {recipe.task}; use strategy: intermediate"
        )
    if adds and recipe.task == "fill-mask":
        yield f"from: {parent.reference} has tokens of its own, for which the fill-mask head has no rows"
    if recipe.start == "stack":
        if adds:
            yield f"start: {parent.reference} has tokens of its own, whose rows can't be stacked; continue it"
        if config.get("use_dora"):
            yield "start: a DoRA adapter can't be stacked, since its magnitudes go with its own weights; continue it"
        return
    if config.get("lora_bias"):
        yield "start: an adapter with lora_bias can't be continued; stack on it"
    lora = recipe.lora
    for setting, field, ours in (("rank", "r", lora.rank), ("alpha", "lora_alpha", lora.alpha)):
        if setting in lora.model_fields_set and ours != config.get(field, 8):
            yield (
                f"lora.{setting}: {ours:g} in the recipe, {config.get(field, 8):g} in {parent.reference}, which is "
                "continued; leave it out, or use start: stack"
            )
    variant = variant_of(config)
    asked = recipe.method if recipe.method in _VARIANTS.values() else None
    if "method" in recipe.model_fields_set and asked != variant:
        yield (
            f"method: {recipe.method!r} in the recipe, {parent.reference} is {variant or 'plain lora'}; "
            "leave it out, or use start: stack"
        )


def _adds_tokens(checkpoint: Checkpoint) -> bool:
    """Is it low-rank weights beside rows for the tokens that it added, and nothing else?"""
    added = checkpoint.manifest.added_tokens if checkpoint.manifest else None
    rows = ["trainable_token_indices"]
    return bool(added) and checkpoint.peft_type == "LORA" and fields_for_peft(checkpoint) == rows


_VARIANTS = {"use_rslora": "rslora", "use_dora": "dora"}


def variant_of(config: Mapping[str, Any]) -> str | None:
    """The recipes' name for what an adapter does otherwise than plain LoRA; None where it is plain."""
    return next((method for flag, method in _VARIANTS.items() if config.get(flag)), None)
