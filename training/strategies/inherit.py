"""What a parent's checkpoint gives to a run on its own base: low-rank weights by place, and perhaps its head.

Task classes name the body differently (``bert.encoder...``, ``transformer...``, or nothing), and leave out parts of it
that they don't need. So weights are found by the loader's own matching against the whole body, and put by body path.
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorary.adapters.base.identity import body_of
from lorary.adapters.base.modules import ModuleMap, map_modules
from lorary.adapters.matching.keys import PEFT_PREFIX, KeyPlan, Site, plan_keys
from lorary.adapters.proving.golden import load_tensors
from lorary.adapters.through_peft.vocabulary import TRAINED_ROWS
from lorary.hub.base import compare
from lorary.hub.checkpoint import WEIGHTS_NAME
from lorary.hub.errors import BaseMismatchError, RecipeError, TrainingError
from lorary.training.data import Note
from lorary.training.model import Base, resolve_targets
from lorary.training.model.picking import lies_in
from lorary.training.recipe import Recipe
from lorary.training.strategies.parent import Parent, variant_of
from lorary.training.tasks import Task


@dataclass(frozen=True)
class Inheritance:
    """A parent's weights, by their places in the child's task model.

    ``sites``: path of a linear module -> its update; ``whole``: parameter that was trained whole -> its values (the
    head's, and those of parts that the base's files lack). ``rows``: an embedding's or output layer's own name -> the
    rows of the tokens that the parent added. ``tensors`` are the checkpoint's, by key.
    """

    parent: Parent
    sites: Mapping[str, Site]
    whole: Mapping[str, torch.Tensor]
    rows: Mapping[str, torch.Tensor]
    tensors: Mapping[str, torch.Tensor]
    prefix: str

    def state(self) -> dict[str, torch.Tensor]:
        """All of it under the keys that PEFT gives them in the child's model."""
        keys = (
            (path, key)
            for path, site in self.sites.items()
            for key in (site.a, site.b, site.bias, site.magnitude)
            if key is not None
        )
        state = {f"{PEFT_PREFIX}{path}.lora_{key.rpartition('.lora_')[2]}": self.tensors[key] for path, key in keys}
        return state | self.whole_state()

    def whole_state(self) -> dict[str, torch.Tensor]:
        """What was trained whole, under PEFT's keys."""
        return {f"{PEFT_PREFIX}{name}": tensor for name, tensor in self.whole.items()}


def inherit(parent: Parent, base: Base, task: Task, note: Note) -> Inheritance:
    """Find the place of each of a parent's tensors in the child's task model; the task is told if it keeps the head.

    Raises:
        BaseMismatchError: the parent was trained on another base.
        KeyMismatchError: its tensors don't fit the base.
        TrainingError: nothing of it has a place in the task model.
    """
    _demand_same_base(parent, base, note)
    checkpoint = parent.checkpoint
    tensors = load_tensors(checkpoint.files[WEIGHTS_NAME])
    # The rows have their place beside the body's modules: in the layers that the child has for the same tokens.
    of_rows = {key for key in checkpoint.tensors if key.endswith(TRAINED_ROWS)}
    others = {key: info for key, info in checkpoint.tensors.items() if key not in of_rows}
    plan = plan_keys(replace(checkpoint, tensors=others), _whole_body(base))
    rows = {key.removesuffix(f".{TRAINED_ROWS}").rpartition(".")[2]: tensors[key] for key in of_rows}
    ours = map_modules(base.model, body_of(base.model))
    prefix = ours.body_prefix
    sites = {f"{prefix}{site.path}": site for site in plan.sites}
    placed = {path: site for path, site in sites.items() if ours.site(path) is not None}
    left = sorted(site.path for path, site in sites.items() if path not in placed)
    if not placed:
        raise TrainingError(f"nothing of {parent.reference} has a place in {task.name}: {', '.join(left[:3])}")
    if left:
        note(f"of {parent.reference} left out, since {task.name} has no such part: {', '.join(left)}")
    whole = _whole(parent, plan, base, task, prefix, tensors, note)
    return Inheritance(parent, placed, whole, rows, tensors, prefix)


def inherited_recipe(recipe: Recipe, base: Base, given: Inheritance) -> Recipe:
    """The recipe with the rank, alpha, targets and scaling of the weights that are continued.

    Raises:
        RecipeError: the recipe's own targets are others.
    """
    paths = list(given.sites)
    if "targets" in recipe.lora.model_fields_set:
        _demand_same_targets(recipe, base, given)
        targets: Any = recipe.lora.targets
    else:
        targets = _shortest_targets(base, paths, given.prefix)
    ranks = {path: site.rank for path, site in given.sites.items()}
    variant = variant_of(given.parent.checkpoint.config)
    alphas = {path: _alpha(site, variant) for path, site in given.sites.items()}
    rank, rank_pattern = _commonest(ranks, given.prefix)
    alpha, alpha_pattern = _commonest(alphas, given.prefix)
    lora = recipe.lora.model_copy(
        update={
            "rank": rank,
            "alpha": alpha,
            "targets": targets,
            "rank_pattern": rank_pattern,
            "alpha_pattern": alpha_pattern,
        }
    )
    return recipe.model_copy(update={"lora": lora, "method": variant or recipe.method})


def _alpha(site: Site, variant: str | None) -> float:
    """The alpha that gives a site its scale; without the last digit's noise of dividing and multiplying again."""
    return round(site.scale * (math.sqrt(site.rank) if variant == "rslora" else site.rank), 9)


def _demand_same_base(parent: Parent, base: Base, note: Note) -> None:
    manifest = parent.checkpoint.manifest
    match = compare(manifest.base if manifest else None, base.identity)
    if match.same is False and manifest is not None:
        theirs, ours = str(manifest.base.fingerprint)[:12], str(base.identity.fingerprint)[:12]
        raise BaseMismatchError(
            f"from: {parent.reference} was trained on {manifest.base.id!r} (fingerprint {theirs}), the recipe's base "
            f"is {base.identity.id!r} ({ours}); name that base, or train a domain adapter on this one"
        )
    for line in match.notes:
        note(f"from {parent.reference}: {line}")


def _whole_body(base: Base) -> ModuleMap:
    """The modules of the whole body, also of the parts that this task's class leaves out (a pooler, a decoder)."""
    from transformers import AutoModel

    config = copy.deepcopy(base.model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        body = AutoModel.from_config(config)
    return map_modules(body, body)


def _whole(
    parent: Parent,
    plan: KeyPlan,
    base: Base,
    task: Task,
    prefix: str,
    tensors: Mapping[str, torch.Tensor],
    note: Note,
) -> dict[str, torch.Tensor]:
    """Parameters that were trained whole and go on: parts of the body, and the head where it answers the same."""
    shapes = {name: tuple(p.shape) for name, p in base.model.named_parameters() if lies_in(name, base.saved)}
    whole = {
        f"{prefix}{path}.{parameter}": tensors[key]
        for path, parameters in plan.overrides.items()
        for parameter, key in parameters.items()
        if f"{prefix}{path}.{parameter}" in shapes
    }
    heads = {name for name in shapes if not prefix or not name.startswith(prefix)}
    if not heads or not plan.head:
        return whole
    manifest = parent.checkpoint.manifest
    theirs = {name: tuple(tensors[key].shape) for name, key in plan.head.items()}
    kind = manifest.problem_type if manifest is not None else None
    same = (parent.task, kind) == (task.name, task.problem_type) and theirs == {name: shapes[name] for name in heads}
    if same and manifest is not None and (manifest.labels or ()) == task.labels:
        task.keep_head()
        return whole | {name: tensors[key] for name, key in plan.head.items()}
    if parent.task == task.name:
        found = ", ".join(manifest.labels or ()) if manifest else "labels without names"
        note(f"the head is a new one: {parent.reference} answers with other labels ({found})")
    return whole


def _demand_same_targets(recipe: Recipe, base: Base, given: Inheritance) -> None:
    asked = set(resolve_targets(base.model, recipe.lora.targets, base.saved))
    theirs = set(given.sites)
    # Whether a task class has a pooler is its own affair: `all-linear` means the same without it.
    more = {path for path in asked - theirs if not path.removeprefix(given.prefix).startswith("pooler.")}
    if more or theirs - asked:
        first = sorted(more or theirs - asked)[0]
        raise RecipeError(
            recipe.name,
            [
                f"lora.targets: {recipe.lora.targets!r} in the recipe, {_endings(theirs)} in {given.parent.reference}, "
                f"whose weights are continued (first difference: {first}); leave it out, or use start: stack"
            ],
        )


def _shortest_targets(base: Base, paths: Sequence[str], prefix: str) -> tuple[str, ...]:
    """The modules' last names where these mean the same modules, else their paths in the body."""
    endings = tuple(sorted({path.rpartition(".")[2] for path in paths}))
    if set(resolve_targets(base.model, endings, base.saved)) == set(paths):
        return endings
    return tuple(path.removeprefix(prefix) for path in paths)


def _endings(paths: set[str]) -> str:
    return ", ".join(sorted({path.rpartition(".")[2] for path in paths}))


def _commonest(values: Mapping[str, Any], prefix: str) -> tuple[Any, dict[str, Any]]:
    """The most frequent value, and a pattern with its own value for each path that has another."""
    common = Counter(values.values()).most_common(1)[0][0]
    others = {path: value for path, value in values.items() if value != common}
    return common, {re.escape(path.removeprefix(prefix)): value for path, value in others.items()}
