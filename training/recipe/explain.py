"""A line for each mistake that pydantic finds in a recipe, in the words of the recipe."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from lorary.training.recipe.raw import RawRecipe, nearest, shown

# Names that people bring along from other trainers and that no edit distance would find.
_OTHER_NAMES = {
    "r": "rank", "lora_r": "lora.rank", "lora_alpha": "lora.alpha", "lora_dropout": "lora.dropout",
    "lr": "learning_rate", "target_modules": "lora.targets", "num_train_epochs": "epochs", "num_epochs": "epochs",
    "max_seq_length": "max_length", "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation", "warmup_ratio": "warmup",
    "lr_scheduler_type": "scheduler", "base_model": "base", "model": "base", "use_rslora": "method: rslora",
    "load_in_4bit": "quantization: nf4", "load_in_8bit": "quantization: int8", "parent": "from", "from_": "from",
}  # fmt: skip


def explain(error: ValidationError, raw: RawRecipe, recipe: type[BaseModel]) -> list[str]:
    """A line for each mistake that pydantic found: where, which key, what was found, what is allowed."""
    found: dict[str, list[Any]] = {}
    for item in error.errors():
        found.setdefault(".".join(_real_keys(item["loc"], recipe)), []).append(item)
    return [
        f"{where(raw, dotted)}{dotted}: {_mistake(_meant(items), dotted.split('.'), recipe, _other_kinds(items))}"
        for dotted, items in found.items()
    ]


def _meant(items: Sequence[Any]) -> Any:
    """Of a union's mistakes, one for each of its kinds: that of the kind that was meant, where a value tells it."""
    return next((item for item in items if _BOUNDS.keys() & (item.get("ctx") or {}).keys()), items[0])


def _other_kinds(items: Sequence[Any]) -> list[str]:
    """What a key takes beside certain words."""
    kinds = {"float_type": "a number", "float_parsing": "a number", "dict_type": "keys and values below it"}
    return list(dict.fromkeys(kinds[item["type"]] for item in items if item["type"] in kinds))


def where(raw: RawRecipe, dotted: str) -> str:
    """``line 7: `` or ``--set: ``, wherever a key was given; empty where neither is known."""
    origin = raw.origin(dotted)
    return f"{origin}: " if origin and origin != "given" else ""


def _real_keys(loc: Sequence[int | str], recipe: type[BaseModel]) -> list[str]:
    """pydantic's location without the parts that name a kind of a union or a place in a list."""
    keys: list[str] = []
    model: type[BaseModel] | None = recipe
    for part in loc:
        if model is None:
            break
        keys.append(str(part))
        model = _section_model(model, str(part))
    return keys


def _section_model(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    info = model.model_fields.get(key)
    annotation = info.annotation if info else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _mistake(item: Any, keys: Sequence[str], recipe: type[BaseModel], others: Sequence[str]) -> str:
    found, kind, context = item["input"], item["type"], item.get("ctx") or {}
    if kind == "extra_forbidden":
        return _unknown_key(keys, recipe)
    if kind == "missing":
        return f"missing; expected {_EXPECTED.get(keys[-1], 'a value')}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"expected keys and values below it, found {shown(found)}"
    if kind == "literal_error":
        allowed = _allowed(keys, recipe)
        expected = _either([*allowed, *others]) if others else f"one of {', '.join(allowed)}"
        return f"expected {expected}, found {shown(found)}{_hint(keys[-1], found, allowed)}"
    if kind == "string_type":
        quote = "; put it in quotes" if isinstance(found, (bool, int, float)) else ""
        return f"expected a text, found {shown(found)}{quote}"
    if kind == "string_too_short":
        return "expected a text, found an empty one"
    number = {"int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number"}.get(kind)
    if number:
        return f"expected {number}, found {shown(found)}"
    for bound in _BOUNDS.keys() & context.keys():
        return f"expected a number {_BOUNDS[bound]} {context[bound]}, found {shown(found)}"
    if kind in ("tuple_type", "finite_number"):
        return f"expected {'a list' if kind == 'tuple_type' else 'a finite number'}, found {shown(found)}"
    if kind == "bool_type":
        return f"expected {_either(['true', 'false', *_allowed(keys, recipe)])}, found {shown(found)}"
    return f"{item['msg']}, found {shown(found)}"


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


_BOUNDS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}

_EXPECTED = {
    "name": "the adapter's name, such as 'finance-tone'",
    "domain": "the subject matter, such as 'finance'",
    "task": "a task, such as 'text-classification'",
    "base": "the base model: a folder or an id on the Hub",
    "data": "data.train: a file, a dataset's folder or a dataset id",
    "train": "a .jsonl, .csv or .parquet file, a dataset's folder or a dataset id",
}


def _unknown_key(keys: Sequence[str], recipe: type[BaseModel]) -> str:
    model = recipe
    for key in keys[:-1]:
        model = _section_model(model, key) or model
    word = keys[-1]
    allowed = [info.alias or name for name, info in model.model_fields.items()]
    if word in _OTHER_NAMES:
        return f"unknown key; here it is called {_OTHER_NAMES[word]!r}"
    hint = nearest(word, allowed)
    if not hint:
        # The key may be right and its place wrong: `epochs` at the top, `base` below data.
        homes = [
            f"{section}.{word}"
            for section in recipe.model_fields
            if (inner := _section_model(recipe, section)) and word in inner.model_fields
        ]
        homes += [word] if word in recipe.model_fields else []
        hint = f"; did you mean {homes[0]!r}?" if homes else ""
    return f"unknown key; allowed here: {', '.join(allowed)}{hint}"


def _allowed(keys: Sequence[str], recipe: type[BaseModel]) -> list[str]:
    model = recipe
    for key in keys[:-1]:
        model = _section_model(model, key) or model
    return list(_literals(model.model_fields[keys[-1]].annotation))


def _literals(annotation: Any) -> Iterator[str]:
    for argument in typing.get_args(annotation):
        if isinstance(argument, str):
            yield argument
        else:
            yield from _literals(argument)


def _hint(key: str, found: Any, allowed: Sequence[str]) -> str:
    if key == "strategy" and found == "pretrain":
        return "; a base from scratch has a command of its own, `lorary pretrain`"
    return nearest(str(found), allowed)
