"""Settings that depend on other settings, put in before a recipe is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorary.training.recipe.adalora import with_ranks
from lorary.training.recipe.corpus import is_text
from lorary.training.recipe.methods import PEFT_METHODS
from lorary.training.recipe.tasks import TASK_FACTS


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put in what depends on other settings: training settings and columns by the task, alpha, QLoRA's nf4."""
    filled = dict(values)
    task = values.get("task")
    # A wrong task is reported as such; generation's defaults keep it from being reported as missing settings too.
    facts = TASK_FACTS.get(str(task), TASK_FACTS["text-generation"])
    filled.setdefault("strategy", facts.strategy)
    data = values.get("data")
    columns = _columns(filled, data) if isinstance(data, Mapping) else {}
    roles = [role for role in facts.role_defaults if isinstance(columns, Mapping) and columns.get(role) is not None]
    for settings_of in (facts.defaults, *(facts.role_defaults[role] for role in roles)):
        for section, settings in settings_of.items():
            given = values.get(section)
            if section == "lora" and given is None and values.get("method") in PEFT_METHODS:
                continue
            if given is None or isinstance(given, Mapping):
                filled[section] = {**(filled.get(section) or {}), **settings, **(given or {})}
    given = values.get("training")
    if isinstance(given, Mapping) and "min_steps" not in given and {"epochs", "max_steps"} & given.keys():
        filled["training"].pop("min_steps", None)  # it would raise a number that the user has chosen
    lora = filled.get("lora")
    if isinstance(lora, dict) and isinstance(lora.get("rank"), int):
        lora.setdefault("alpha", 2 * max(1, lora["rank"]))  # a wrong rank is one mistake, not two
    if isinstance(lora, dict) and lora.get("parameters") is not None:
        lora.setdefault("dropout", 0.0)  # PEFT has none on parameters
    if values.get("method") == "qlora":
        filled.setdefault("quantization", "nf4")
    peft = values.get("peft", {})
    if values.get("method") == "adalora" and isinstance(peft, Mapping):
        filled["peft"] = with_ranks(peft)
    if values.get("from") is not None:
        filled.setdefault("start", "continue")
    if isinstance(data, Mapping):
        filled["data"] = data = {**data, "columns": columns}
        training = filled.get("training")
        folds = training.get("folds") if isinstance(training, Mapping) else None
        if data.get("test") is None and data.get("test_split") is None and folds is None:
            data.setdefault("test_size", 0.2)
    return filled


def _columns(values: Mapping[str, Any], data: Mapping[str, Any]) -> Any:
    given, train = data.get("columns"), data.get("train")
    if given is not None and not isinstance(given, Mapping):
        return given
    given = dict(given or {})
    facts = TASK_FACTS.get(str(values.get("task")))
    if facts is not None and facts.corpus:
        text_files = not given and isinstance(train, str) and bool(train) and is_text(train)
        if text_files or values.get("strategy") == "continual":
            return {"text": "text", **given}
    if facts is not None and data.get("label_columns"):
        return {**{role: column for role, column in facts.columns.items() if role != "label"}, **given}
    if facts is None or any(form <= given.keys() and form - facts.columns.keys() for form in facts.forms):
        return given  # the columns of another form than the first, each by its name
    return {**facts.columns, **given}
