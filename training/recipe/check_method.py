"""Settings of the method, its targets and the base's quantization that contradict each other."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lorary.training.recipe.adalora import adalora_problems
from lorary.training.recipe.methods import (
    INITIALISATIONS,
    LORA_METHODS,
    NOT_TRAINED,
    PEFT_METHODS,
    RESERVED,
    TAKEN_FROM_WEIGHTS,
)
from lorary.training.recipe.raw import nearest, section

FOUR_BIT = ("nf4", "fp4")
TARGET_WORDS = ("all-linear", "attention", "mlp")
EXPERTS = "experts"
"""Of ``lora.parameters``: all fused experts."""

LAYER_RANGE = r"(first|last) [1-9]\d*"

Problems = Iterator[tuple[str, str]]


def method_problems(values: Mapping[str, Any]) -> Problems:
    """What is wrong with ``method``, ``quantization``, ``lora`` and ``peft``, each with its dotted key."""
    yield from _quantization(values)
    method = values.get("method", "lora")
    if method in PEFT_METHODS:
        yield from _peft(values, method)
    elif method in LORA_METHODS:
        for key in section(values, "peft"):
            yield f"peft.{key}", f"method {method!r} takes its settings under lora; peft is for other methods"
        yield from _lora(values, method)
    elif method in NOT_TRAINED:
        yield "method", f"{method} can't be trained: {NOT_TRAINED[method]}"
    elif isinstance(method, str) and method:
        names = (*LORA_METHODS, *PEFT_METHODS)
        hint = nearest(method.lower().replace("_", "-"), names)
        yield "method", f"expected one of {', '.join(names)}, found {method!r}{hint}"


def _quantization(values: Mapping[str, Any]) -> Problems:
    quantization = values.get("quantization", "none")
    if values.get("method") == "qlora" and quantization in ("none", "int8"):
        yield (
            "quantization",
            f"method 'qlora' means a base quantized to nf4 or fp4, found {quantization!r}; "
            f"leave quantization out, or use method 'lora' with quantization {quantization!r}",
        )
    if values.get("double_quantization") is not None and quantization not in FOUR_BIT:
        yield "double_quantization", f"only nf4 and fp4 have it; quantization is {quantization!r}"


def _peft(values: Mapping[str, Any], method: str) -> Problems:
    facts, peft = PEFT_METHODS[method], section(values, "peft")
    if "lora" in values:
        yield "lora", f"method {method!r} isn't LoRA; its settings stand under peft, by PEFT's own names"
    if values.get("from") is not None:
        yield "from", f"only LoRA and its kin can start from another adapter; the method is {method}"
    if facts.tasks and values.get("task") not in facts.tasks:
        yield "method", f"PEFT has {method} for {', '.join(facts.tasks)} only; the task is {values.get('task')}"
    quantization = values.get("quantization", "none")
    if quantization != "none" and not facts.quantized:
        yield "quantization", f"PEFT has no layers of {method} for a base quantized to {quantization}; use 'none'"
    for key, instead in RESERVED.items():
        if key in peft:
            yield f"peft.{key}", "the run sets it" + (f", from {instead!r}" if instead else "")
    for key, value in peft.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"peft.{key}", f"expected a finite number, found {value}"
    if section(values, "training").get("lora_plus_ratio") is not None:
        yield "training.lora_plus_ratio", f"LoRA+ needs a B matrix that begins at zero, and {method} has none"
    if method == "prefix-tuning" and section(values, "training").get("gradient_checkpointing"):
        yield (
            "training.gradient_checkpointing",
            "the prefix stands where transformers keeps past keys and values, which it leaves out where activations "
            "are computed again; leave it out",
        )
    if facts.targets == "linear":
        yield from _targets("peft.target_modules", peft.get("target_modules"))
    if method == "adamss" and peft.get("use_asa"):
        yield (
            "peft.use_asa",
            "PEFT allocates subspaces in a callback that no run calls, so it would change nothing; leave it out, or "
            "use method 'adalora', whose ranks are allocated",
        )
    if method == "adalora":
        yield from adalora_problems(values)


def _lora(values: Mapping[str, Any], method: str) -> Problems:
    lora = section(values, "lora")
    if lora.get("parameters") is None or lora.get("targets") not in ((), []):
        yield from _targets("lora.targets", lora.get("targets"))
    exclude = lora.get("exclude")
    if isinstance(exclude, str):
        yield from _regex("lora.exclude", exclude)
    elif exclude in ((), []):
        yield "lora.exclude", "the list is empty; name layers, or leave it out"
    if lora.get("parameters") is not None:
        yield from _parameters(lora, method)
    layers = lora.get("layers")
    if isinstance(layers, str) and not re.fullmatch(LAYER_RANGE, layers):
        yield "lora.layers", f"expected numbers such as [0, 1], 'first 4' or 'last 4', found {layers!r}"
    elif layers in ((), []):
        yield "lora.layers", "the list is empty, so nothing would be trained; number layers or leave it out"
    for table in ("rank_pattern", "alpha_pattern"):
        for pattern in section(lora, table):
            yield from _regex(f"lora.{table}", str(pattern))
    init = lora.get("init")
    if isinstance(init, str) and init != "default" and values.get("from") and values.get("start") != "stack":
        yield "lora.init", "the run goes on with the weights of another adapter; leave it out, or set start: stack"
    elif isinstance(init, str):
        yield from _initialisation(init, lora, method, values.get("quantization", "none"))


def _parameters(lora: Mapping[str, Any], method: str) -> Problems:
    """What PEFT's layer for parameters can't do; it adds to the weight, and never sees the weight's input."""
    dotted, asked = "lora.parameters", lora["parameters"]
    if isinstance(asked, str) and asked != EXPERTS:
        if re.fullmatch(r"[\w-]+", asked):
            hint = nearest(asked, [EXPERTS]) or f"; a list of one name is [{asked}]"
            yield dotted, f"expected {EXPERTS!r}, a list of names or a regular expression, found {asked!r}{hint}"
        else:
            yield from _regex(dotted, asked)
    elif asked in ((), []):
        yield dotted, "the list is empty; name parameters, or leave it out"
    if method == "dora":
        yield dotted, "PEFT has no DoRA on parameters; use method 'lora'"
    if lora.get("dropout"):
        yield "lora.dropout", "PEFT has none on parameters, nor beside them; leave it out, or leave lora.parameters out"
    init = lora.get("init", "default")
    if init in INITIALISATIONS and init not in ("default", "gaussian"):
        yield "lora.init", f"{init!r} isn't for parameters; use 'default' or 'gaussian', or leave lora.parameters out"


def _initialisation(init: str, lora: Mapping[str, Any], method: str, quantization: str) -> Problems:
    kind = "pissa" if re.fullmatch(r"pissa_niter_[1-9]\d*", init) else init
    if kind not in INITIALISATIONS:
        yield (
            "lora.init",
            f"expected one of {', '.join(INITIALISATIONS)}, found {init!r}{nearest(init, INITIALISATIONS)}",
        )
        return
    if kind == "loftq" and quantization == "none":
        yield (
            "lora.init",
            "'loftq' makes up for what quantizing the base lost, so on an unquantized base it has nothing to do; "
            "set quantization, or use another init",
        )
    if method == "dora" and kind.startswith((*TAKEN_FROM_WEIGHTS, "loftq")):
        yield (
            "lora.init",
            f"{init!r} changes what DoRA's norm is taken of, so the result can't be written against the base as it is; "
            "use method 'lora' or another init",
        )
    if kind == "orthogonal" and quantization != "none":
        yield (
            "lora.init",
            f"PEFT gives 'orthogonal' factors the type of the base's weights, whole numbers in {quantization}; "
            "use another init",
        )
    rank = lora.get("rank")
    ranks = [rank, *section(lora, "rank_pattern").values()]
    odd = [rank for rank in ranks if isinstance(rank, int) and rank % 2]
    if kind == "orthogonal" and odd:
        yield "lora.init", f"'orthogonal' needs even ranks, found {odd[0]}"


def _targets(dotted: str, targets: Any) -> Problems:
    if isinstance(targets, str) and targets not in TARGET_WORDS:
        # A misspelt word would be taken for a pattern that matches nothing.
        if re.fullmatch(r"[\w-]+", targets):
            words = ", ".join(repr(word) for word in TARGET_WORDS)
            yield (
                dotted,
                f"expected {words}, a list of names or a regular expression, found {targets!r}"
                + (nearest(targets, TARGET_WORDS) or f"; a list of one name is [{targets}]"),
            )
        else:
            yield from _regex(dotted, targets)
    if targets in ((), []):
        yield dotted, "the list is empty, so nothing would be trained; name layers or use 'all-linear'"


def _regex(dotted: str, pattern: str) -> Problems:
    try:
        re.compile(pattern)
    except re.error as error:
        yield dotted, f"{pattern!r} isn't a regular expression ({error})"
