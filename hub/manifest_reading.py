"""Reading ``lorary.json`` strictly: strangers write it too, and an error names the field that isn't as it should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, TypeVar

from lorary.hub.errors import CheckpointError
from lorary.hub.jsontext import load_json
from lorary.hub.manifest import (
    FORMAT,
    Answering,
    BaseIdentity,
    Filling,
    Generation,
    Manifest,
    Numerics,
    Pooling,
    Preprocessing,
    Prompt,
)

_R = TypeVar("_R", BaseIdentity, Preprocessing, Pooling, Answering, Filling, Prompt, Generation, Numerics)

# What each annotation of a manifest's records admits in JSON; bool is an int to Python, so types are compared exactly.
_JSON_TYPES: Mapping[Any, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, NoneType),
    "int": (int,),
    "int | None": (int, NoneType),
    "float": (int, float),
    "Mapping[str, str]": (dict,),
    "Mapping[str, Any] | None": (dict, NoneType),
    "bool": (bool,),
}


def parse_manifest(text: str, source: str) -> Manifest:
    """Read a manifest; ``source`` names it in errors.

    Raises:
        CheckpointError: the text isn't a manifest of a format that this version reads.
    """
    try:
        raw = load_json(text)
    except ValueError as error:
        raise CheckpointError(f"{source}: not valid JSON ({error}); export or train the adapter again") from error
    if not isinstance(raw, dict) or type(raw.get("format")) is not int:
        raise CheckpointError(f"{source}: expected an object with an integer 'format', as lorary writes it")
    if raw["format"] > FORMAT:
        raise CheckpointError(
            f"{source}: manifest format {raw['format']} is newer than this lorary reads ({FORMAT}); upgrade lorary"
        )
    try:
        return _build(raw)
    except KeyError as error:
        raise CheckpointError(f"{source}: not a valid manifest (no {error})") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: not a valid manifest ({error})") from error


def _record(kind: type[_R], raw: Any) -> _R:
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object for {kind.__name__.lower()}, found {raw!r}")
    for part in fields(kind):
        if part.name in raw:
            _demand(part.name, raw[part.name], *_JSON_TYPES[part.type])
    return kind(**raw)


def _build(raw: Mapping[str, Any]) -> Manifest:
    for name, kind in (
        ("labels", list),
        ("domain", str),
        ("problem_type", str),
        ("golden_rows", list),
        ("added_tokens", list),
        ("provenance", dict),
    ):
        _demand(name, raw.get(name), kind, NoneType)
    preprocessing = _record(Preprocessing, raw.get("preprocessing") or {})
    for role, column in preprocessing.columns.items():
        _demand(f"columns.{role}", column, str)
    labels, added = raw.get("labels"), raw.get("added_tokens")
    return Manifest(
        task=_text(raw["task"]),
        base=_record(BaseIdentity, raw["base"]),
        domain=raw.get("domain"),
        labels=tuple(_text(label) for label in labels) if labels is not None else None,
        problem_type=raw.get("problem_type"),
        preprocessing=preprocessing,
        prompt=_record(Prompt, raw["prompt"]) if raw.get("prompt") else None,
        pooling=_record(Pooling, raw["pooling"]) if raw.get("pooling") else None,
        generation=_record(Generation, raw["generation"]) if raw.get("generation") else None,
        answering=_record(Answering, raw["answering"]) if raw.get("answering") else None,
        thresholds=_shares(raw["thresholds"], labels) if raw.get("thresholds") is not None else None,
        added_tokens=tuple(_text(token) for token in added) if added is not None else None,
        filling=_record(Filling, raw["filling"]) if raw.get("filling") else None,
        numerics=_record(Numerics, raw.get("numerics") or {}),
        golden_rows=tuple(_token_ids(row) for row in raw.get("golden_rows") or ()),
        provenance=raw.get("provenance") or {},
    )


def _demand(name: str, value: Any, *kinds: type) -> None:
    if type(value) not in kinds:
        expected = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
        raise ValueError(f"{name}: expected {expected}, found {value!r}")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected a text, found {value!r}")
    return value


def _token_ids(row: Any) -> tuple[int, ...]:
    if not isinstance(row, list) or not all(type(token) is int and token >= 0 for token in row):
        raise ValueError("golden_rows must hold lists of token ids")
    return tuple(row)


def _shares(raw: Any, labels: list[Any] | None) -> tuple[float, ...]:
    if not isinstance(raw, list) or len(raw) != len(labels or ()):
        raise ValueError(f"thresholds must hold a number for each of {len(labels or ())} labels, found {raw!r}")
    for value in raw:
        if type(value) not in (int, float) or not 0 < value < 1:
            raise ValueError(f"thresholds: expected numbers between 0 and 1, found {value!r}")
    return tuple(map(float, raw))
