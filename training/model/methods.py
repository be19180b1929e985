"""PEFT's config of a recipe's method: LoRA's settings from ``lora``, any other's from ``peft``, by PEFT's names."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lorary.adapters.base.device import pick_device
from lorary.adapters.base.identity import body_of
from lorary.adapters.base.modules import map_modules
from lorary.hub.errors import RecipeError, TrainingError, first_line
from lorary.training.data import Note
from lorary.training.model.base import Base
from lorary.training.model.new_tokens import token_rows
from lorary.training.model.parameters import resolve_parameters
from lorary.training.model.picking import demand_used
from lorary.training.model.targets import resolve_targets
from lorary.training.recipe import Recipe
from lorary.training.recipe.methods import LORA_METHODS, PEFT_METHODS, RESERVED
from lorary.training.recipe.raw import nearest
from lorary.training.tasks import Task

_BY_PEFT = ("gaussian", "orthogonal", "eva")
"""Initialisations that are PEFT's own affair once it is told of them; they leave the base's weights alone."""


def check_settings(recipe: Recipe) -> None:
    """Hold ``dtype`` against the device, and ``peft`` against the method's config: before anything else is loaded.

    Raises:
        RecipeError: arithmetic that can't be trained in on a CPU; keys that the method doesn't have, or values that it
            refuses.
    """
    if pick_device(recipe.device).type == "cpu":
        _demand_trainable_on_cpu(recipe)
    if recipe.method in LORA_METHODS:
        return
    config_class, known = _config_class(recipe)
    known = set(PEFT_METHODS[recipe.method].settings) or known
    unknown = [key for key in recipe.peft if key not in known]
    allowed = ", ".join(sorted(known - RESERVED.keys()))
    problems = [
        f"peft.{key}: {recipe.method} has no such setting{nearest(key, known)}; allowed here: {allowed}"
        for key in unknown
    ]
    if not problems:
        try:
            with _without_advice():
                config_class(**_settings(recipe))
        except (TypeError, ValueError, ImportError) as error:
            problems.append(f"peft: {recipe.method} refuses its settings: {first_line(error)}")
    if problems:
        raise RecipeError("recipe", problems)


def _demand_trainable_on_cpu(recipe: Recipe) -> None:
    """Neither torch nor accelerate scales losses on CPUs, so that small gradients would be zeros in float16."""
    instead = "use bfloat16 or float32, or train on a GPU"
    if recipe.dtype == "float16":
        raise RecipeError("recipe", [f"dtype: float16 isn't trained in on a CPU; {instead}"])
    if (recipe.method, recipe.quantization, recipe.dtype) == ("ia3", "int8", "bfloat16"):
        # PEFT (0.21) asks whether CUDA's autocast is on, and gives a norm in bfloat16 what is float32.
        raise RecipeError("recipe", ["dtype: PEFT can't train ia3 on an 8-bit base in bfloat16 on a CPU; use float32"])
    if (recipe.method, recipe.quantization) == ("dora", "int8"):
        # PEFT (0.21) moves the unpacked weight back to the CPU, and what bitsandbytes moves has lost its scales.
        raise RecipeError("recipe", ["method: PEFT can't train dora on an 8-bit base on a CPU; use nf4, or a GPU"])


def virtual_tokens(recipe: Recipe) -> int:
    """How many of the base's positions the method takes before a row."""
    if recipe.method in LORA_METHODS:
        return 0
    return int(_settings(recipe).get("num_virtual_tokens") or 0)


def chosen_targets(model: Any, recipe: Recipe, saved: Sequence[str], note: Note | None = None) -> list[str] | None:
    """The paths of the modules that get an adapter; None where the method picks them itself.

    ``note`` is told what PEFT can't adapt and is left out.

    Raises:
        TrainingError: a name or a pattern matches nothing, or what PEFT can't adapt.
    """
    if recipe.method in LORA_METHODS:
        lora = recipe.lora
        if not lora.targets:
            return []
        return resolve_targets(model, lora.targets, saved, exclude=lora.exclude, layers=lora.layers, note=note)
    facts = PEFT_METHODS[recipe.method]
    kind = facts.targets
    if kind is None or (kind == "norms" and "target_modules" in recipe.peft):
        return None
    if kind == "norms":
        return [path for path, module in body_of(model).named_modules(prefix=_prefix(model)) if _is_norm(module)]
    asked = recipe.peft.get("target_modules", "all-linear")
    return resolve_targets(model, asked, saved, key="peft.target_modules", peft_type=facts.peft_type, note=note)


def chosen_parameters(model: Any, recipe: Recipe, saved: Sequence[str]) -> list[str]:
    """The paths of the parameters that get an adapter beside the modules.

    Raises:
        TrainingError: as :func:`resolve_parameters`.
    """
    if recipe.method not in LORA_METHODS or recipe.lora.parameters is None:
        return []
    return resolve_parameters(model, recipe.lora.parameters, saved, recipe.lora.layers)


def _prefix(model: Any) -> str:
    return map_modules(model, body_of(model)).body_prefix.removesuffix(".")


def _is_norm(module: Any) -> bool:
    """Is it a LayerNorm or an RMSNorm, of torch's or of a model's own?"""
    return type(module).__name__.endswith("Norm") and getattr(module, "weight", None) is not None


def adapter_config(
    base: Base, task: Task, recipe: Recipe, targets: Sequence[str] | None, parameters: Sequence[str] = ()
) -> Any:
    """PEFT's config for a recipe, with every target and every parameter by its path.

    Raises:
        TrainingError: PEFT refuses the settings.
    """
    if recipe.method in LORA_METHODS:
        return lora_config(base, task, recipe, targets or (), parameters)
    config_class, known = _config_class(recipe)
    settings = _settings(recipe)
    if targets is not None:
        settings["target_modules"] = list(targets)
    if base.saved and "modules_to_save" in known:
        settings["modules_to_save"] = sorted({*base.saved, *(settings.get("modules_to_save") or ())})
    with _without_advice():
        return config_class(task_type=task.peft_task_type, **settings)


def lora_config(base: Base, task: Task, recipe: Recipe, targets: Sequence[str], parameters: Sequence[str] = ()) -> Any:
    """PEFT's ``LoraConfig`` for a recipe.

    Raises:
        TrainingError: a rank or an alpha is for modules that aren't among the targets.
    """
    from peft import EvaConfig, LoraConfig

    lora = recipe.lora
    for table in ("rank_pattern", "alpha_pattern"):
        demand_used(getattr(lora, table), [*targets, *parameters], f"lora.{table}")
    return LoraConfig(
        task_type=task.peft_task_type,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=recipe.method == "rslora",
        use_dora=recipe.method == "dora",
        target_modules=list(targets),
        target_parameters=list(parameters) or None,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        init_lora_weights=lora.init if lora.init in _BY_PEFT else True,
        eva_config=EvaConfig() if lora.init == "eva" else None,
        modules_to_save=list(base.saved) or None,
        trainable_token_indices=token_rows(base),
    )


def make_peft_model(model: Any, config: Any, method: str) -> Any:
    """The ``PeftModel`` of a config, with PEFT's refusals as errors of the run.

    Raises:
        TrainingError: PEFT can't put the method on this base.
    """
    try:
        with _without_advice():
            return wrap(model, config)
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        RuntimeError,
        NotImplementedError,
        AssertionError,
    ) as error:
        raise TrainingError(
            f"PEFT can't put {method} on a {type(model).__name__}: {first_line(error)}; see the settings of peft, or "
            "use another method"
        ) from error


def wrap(model: Any, config: Any, *, on_meta: bool = False) -> Any:
    """The ``PeftModel`` of a config; ``on_meta`` leaves the adapter without values.

    PEFT's own class for question answering (0.21) drops ``token_type_ids``, so a BERT would be trained without telling
    question and context apart; its plain class hands everything on.
    """
    from peft import PeftModel, TaskType, get_peft_model

    plain = config.task_type == TaskType.QUESTION_ANS and not config.is_prompt_learning
    wrapped = (PeftModel if plain else get_peft_model)(model, config, low_cpu_mem_usage=on_meta)
    for name, parameter in wrapped.named_parameters():
        if ".ranknum." in name:
            # How many ranks AdaLoRA began with; PEFT (0.21) lets it be trained where it casts it from half precision.
            parameter.requires_grad_(False)
    # PEFT's card is an empty form, and each checkpoint would get one.
    wrapped.create_or_update_model_card = lambda output_dir: None
    return wrapped


@contextmanager
def _without_advice() -> Iterator[None]:
    """PEFT advises on memory and layouts when it makes an adapter; nothing of it is the user's to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _config_class(recipe: Recipe) -> tuple[Any, set[str]]:
    """PEFT's config class of the method, and its fields."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_METHODS[recipe.method].peft_type]
    return config_class, {field.name for field in dataclasses.fields(config_class) if field.init}


def _settings(recipe: Recipe) -> dict[str, Any]:
    given = {key: _listed(value) for key, value in recipe.peft.items()}
    facts = PEFT_METHODS[recipe.method]
    return {**facts.defaults, **given, **facts.fixed}


def _listed(value: Any) -> Any:
    """Lists as PEFT expects them; a recipe holds tuples."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple) else value
