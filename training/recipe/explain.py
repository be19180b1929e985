"""A line for each mistake that pydantic finds in a recipe, in the words of the recipe."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from lorary.training.recipe.other_names import called, home_of, reason_without
from lorary.training.recipe.raw import RawRecipe, nearest, shown


def explain(error: ValidationError, raw: RawRecipe, recipe: type[BaseModel]) -> list[str]:
    """A line for each mistake that pydantic found: where, which key, what was found, what is allowed."""
    found: dict[str, list[Any]] = {}
    for item in error.errors():
        found.setdefault(".".join(_real_keys(item["loc"], recipe)), []).append(item)
    unknown = [dotted for dotted, items in found.items() if items[0]["type"] == "extra_forbidden"]
    homes = [home for dotted in unknown if (home := _home(dotted, recipe))]
    listed: set[str] = set()  # sections whose keys were listed: once is enough
    lines = []
    for dotted, items in found.items():
        if dotted in unknown:
            what = _unknown_key(dotted.split("."), recipe, listed)
        elif items[0]["type"] == "missing" and ("data.train" if dotted == "data" else dotted) in homes:
            continue  # it is there, under another name
        else:
            what = _mistake(_meant(items), dotted.split("."), recipe, _other_kinds(items))
        lines.append(f"{where(raw, dotted)}{dotted}: {what}")
    return lines


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
    if kind == "missing":
        return f"missing; expected {_EXPECTED.get(keys[-1], 'a value')}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        place = "; data.train names the rows" if keys[-1] == "data" else ""
        return f"expected keys and values below it, found {shown(found)}{place}"
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
    "train": "a .jsonl, .csv, .tsv or .parquet file, a dataset's folder or a dataset id",
}


def _home(dotted: str, recipe: type[BaseModel]) -> str | None:
    """What another trainer's key is called in this kind of recipe."""
    home = home_of(dotted.rpartition(".")[2])
    if home is None or home.startswith("--"):
        return home
    first, _, rest = home.partition(":")[0].partition(".")
    inner = _section_model(recipe, first)
    known = inner is not None and rest in _names(inner) if rest else first in _names(recipe)
    return home if known else None


def _names(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]


def _unknown_key(keys: Sequence[str], recipe: type[BaseModel], listed: set[str]) -> str:
    model = recipe
    for key in keys[:-1]:
        model = _section_model(model, key) or model
    word, section, allowed = keys[-1], ".".join(keys[:-1]), _names(model)
    # The key may be right and its place wrong: `epochs` at the top, `base` below data.
    homes = [word] if word in _names(recipe) else []
    homes += [
        f"{name}.{word}"
        for name in recipe.model_fields
        if (inner := _section_model(recipe, name)) and word in inner.model_fields
    ]
    if homes:
        return f"unknown key; did you mean {' or '.join(map(repr, homes))}?"
    if home := _home(word, recipe):
        return f"unknown key; {called(home)}"
    if reason := reason_without(word):
        return f"unknown key; {reason}, so leave it out"
    names = "" if section in listed else f"; allowed here: {', '.join(allowed)}"
    listed.add(section)
    return f"unknown key{nearest(word, allowed)}{names}"


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
