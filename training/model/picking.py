"""Choosing among the paths of a model's modules and parameters: by names, by patterns, by layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from lorary.hub.errors import TrainingError
from lorary.training.recipe.raw import nearest

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def lies_in(path: str, modules: Sequence[str]) -> bool:
    """Is it one of these modules or within one? They are named by their paths, or by the ends of these."""
    return any(f".{module}." in f".{path}." for module in modules)


def matching(
    patterns: str | Sequence[str], paths: Sequence[str], key: str, kind: str = "linear layer", beside: str = ""
) -> list[str]:
    """The paths that match a regular expression, or one of a list of names, each of which has to match.

    Args:
        patterns: the expression, or names and ends of paths.
        paths: what there is, of one ``kind``.
        key: the setting that errors name.
        beside: what errors say after their list of what could match.

    Raises:
        TrainingError: something matches nothing.
    """
    if isinstance(patterns, str):
        found = [path for path in paths if re.fullmatch(patterns, path)]
        if not found:
            raise TrainingError(f"{key} {patterns!r} matches no {kind}; there are {counted(paths)}{beside}")
        return found
    for one in patterns:
        if not any(_is(path, one) for path in paths):
            known = {short(path) for path in paths}
            raise TrainingError(
                f"{key}: no {kind} is called {one!r}{nearest(one, known)}; there are {counted(paths)}{beside}"
            )
    return [path for path in paths if any(_is(path, one) for one in patterns)]


def demand_used(patterns: Iterable[str], paths: Sequence[str], key: str) -> None:
    """Each pattern must match a path as PEFT matches them: a regular expression for its end, from a dot on.

    Raises:
        TrainingError: one matches nothing, so its value would never be read.
    """
    for one in patterns:
        if not any(re.match(rf"(.*\.)?({one})$", path) for path in paths):
            known = {short(path) for path in paths}
            raise TrainingError(
                f"{key}: {one!r} matches none of the targets{nearest(one, known)}; they are {counted(paths)}"
            )


def _is(path: str, one: str) -> bool:
    return path == one or path.endswith(f".{one}")


def in_layers(paths: Sequence[str], layers: str | Sequence[int], among: Sequence[str]) -> list[str]:
    """The paths that lie in some of the layers that ``among`` has.

    Raises:
        TrainingError: ``among`` has no such layers.
    """
    there = sorted({layer for path in among if (layer := layer_of(path)) is not None})
    if isinstance(layers, str):
        which, _, count = layers.partition(" ")
        wanted = set(there[: int(count)] if which == "first" else there[-int(count) :])
        absent = [int(count)] if int(count) > len(there) else []
    else:
        absent = [layer for layer in layers if (layer not in there if layer >= 0 else -layer > len(there))]
        wanted = {layer if layer >= 0 else there[layer] for layer in layers if layer not in absent}
    if absent or not wanted:
        numbers = f"{there[0]} to {there[-1]}" if there else "no numbered ones"
        raise TrainingError(f"lora.layers: {layers!r} asks for layers that aren't there; the targets have {numbers}")
    return [path for path in paths if layer_of(path) in wanted]


def layer_of(path: str) -> int | None:
    """The number of the layer that a module lies in: the first number in its path."""
    found = _LAYER.search(path)
    return int(found[1]) if found else None


def short(path: str) -> str:
    """The last part of a path; of what is called ``weight``, as any module's may be, the last two."""
    return ".".join(path.split(".")[-2 if path.endswith(".weight") else -1 :])


def counted(paths: Sequence[str]) -> str:
    """The last parts of paths, with how many there are of each."""
    counts = Counter(short(path) for path in paths)
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())) or "none"
