"""How a version came to be, for ``lorary show``: base, data, recipe, seed, software and hardware, in a dozen lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lorary.hub.provenance.origin import DataPart, Origin, git_state, packages, read_origin
from lorary.hub.units import memory, short_number
from lorary.hub.values import Version

_SHORT = 12  # hexadecimal digits of a hash that tell it from others; --json has all of them


def came_to_be(version: Version, told: Mapping[str, Any]) -> dict[str, object]:
    """Names and values for people; ``told`` is what the files of a version without a manifest say."""
    if version.manifest is None and not told:
        return {"record": "none: made outside lorary, without a manifest"}
    origin = read_origin(version, told)
    shown = {
        "made with": origin.tool,
        "base commit": origin.base_commit,
        "base files": _base_files(origin.base_files),
        **{f"{part.split} data": _data(part) for part in origin.data},
        "rows used": ", ".join(f"{count:,} {split}" for split, count in origin.rows.items() if count),
        "recipe": ", ".join(_recipe(origin)),
        "seed": origin.seed,
        "run": _run(origin),
        "memory": memory(origin.peak_memory, origin.predicted_memory),
        "device": origin.device,
        "packages": packages(origin),
        "code": git_state(origin),
        "licenses": ", ".join(f"{what} {text}" for what, text in _licenses(origin) if text),
        "languages": ", ".join(origin.languages),
        "notices": "; ".join(origin.notices),
    }
    return {name: value for name, value in shown.items() if value not in (None, "")}


def _licenses(origin: Origin) -> tuple[tuple[str, str | None], ...]:
    return ("adapter", origin.adapter_license), ("base", origin.base_license), ("data", origin.data_license)


def _base_files(files: Mapping[str, str]) -> str:
    weights = [name for name in files if name.endswith((".safetensors", ".bin"))]
    first = weights[0] if weights else next(iter(files), None)
    if first is None:
        return ""
    more = f", and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{first} sha256 {files[first][:_SHORT]}{more}"


def _data(part: DataPart) -> str:
    rows = f", {part.rows:,} rows" if part.rows is not None else ""
    if part.sha256:
        return f"{part.name}{rows}, sha256 {part.sha256[:_SHORT]}"
    return f"{part.name}{rows}{f', revision {part.revision}' if part.revision else ''}"


def _recipe(origin: Origin) -> Iterator[str]:
    for dotted, name in (
        ("lora.rank", "rank"),
        ("lora.alpha", "alpha"),
        ("lora.targets", "targets"),
        ("training.learning_rate", "learning rate"),
        ("training.epochs", "epochs"),
        ("training.batch_size", "batch size"),
        ("training.max_length", "max length"),
    ):
        value: Any = origin.setting(dotted)
        if isinstance(value, (int, float)):
            yield f"{name} {short_number(value)}"
        elif value is not None:
            yield f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _run(origin: Origin) -> str:
    steps = f"{origin.steps:,} steps" if origin.steps else ""
    seconds = f"{origin.seconds:,.1f} s" if origin.seconds else ""
    return " in ".join(text for text in (steps, seconds) if text)
