"""How a version came to be, read out of its manifest's provenance.

A manifest may have come from anybody: whatever isn't of the expected kind counts as not told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorary.hub.values import Version

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow|txt|md|conll|ya?ml)(\.gz)?$", re.IGNORECASE)
_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class DataPart:
    """One source of rows: ``split`` is what it was used for, ``rows`` how many it holds.

    A file has a ``sha256``, a folder ``files`` with theirs, a dataset on the Hub a ``revision``.
    """

    split: str
    name: str
    rows: int | None
    sha256: str | None
    revision: str | None
    files: Mapping[str, str]

    @property
    def hub_id(self) -> str | None:
        """The dataset's id, where the rows came from the Hub."""
        local = self.sha256 or self.files or _FILE.search(self.name)
        return self.name if not local and _HUB_ID.fullmatch(self.name) else None


@dataclass(frozen=True)
class Origin:
    """How a version came to be; what isn't known is None or empty.

    ``tool`` is the trainer that an imported one was made with, where that was known by what it left.

    ``rows`` are those that were trained, watched and measured on, by split. ``seconds`` and ``steps`` are the
    training's, memory is in bytes. ``git_commit`` is that of the folder that the run was started in, and
    ``git_changed`` says whether anything there differed from it.
    """

    tool: str | None
    recipe: Mapping[str, Any]
    data: tuple[DataPart, ...]
    rows: Mapping[str, int]
    base_commit: str | None
    base_files: Mapping[str, str]
    adapter_license: str | None
    base_license: str | None
    data_license: str | None
    languages: tuple[str, ...]
    seed: int | None
    steps: int | None
    seconds: float | None
    peak_memory: int | None
    predicted_memory: int | None
    device: str | None
    python: str | None
    packages: Mapping[str, str]
    git_commit: str | None
    git_changed: bool
    notices: tuple[str, ...]

    def setting(self, dotted: str) -> Any:
        """A setting of the recipe by its dotted name, None where there is none."""
        value: Any = self.recipe
        for name in dotted.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value


def read_origin(version: Version, told: Mapping[str, Any] | None = None) -> Origin:
    """How a version came to be.

    Args:
        version: one with a manifest is told of by that.
        told: what is known of one without (:attr:`lorary.hub.checkpoint.Checkpoint.told`).
    """
    told = _mapping(version.manifest.provenance if version.manifest else told)
    recipe, data, base = _mapping(told.get("recipe")), _mapping(told.get("data")), _mapping(told.get("base"))
    licenses = _mapping(told.get("licenses"))
    environment, git = _mapping(told.get("environment")), _mapping(told.get("git"))
    return Origin(
        tool=_text(_mapping(told.get("imported")).get("tool")),
        recipe=recipe,
        data=tuple(_part(split, part) for split, part in data.items() if _is_part(part)),
        rows={split: rows for split, rows in _mapping(data.get("rows")).items() if _count(rows) is not None},
        base_commit=version.manifest.base.commit if version.manifest else None,
        base_files=_texts(base.get("files")),
        adapter_license=_text(licenses.get("adapter")),
        base_license=_text(licenses.get("base")),
        data_license=_text(licenses.get("data")),
        languages=_words(told.get("languages")),
        seed=_count(told.get("seed")),
        steps=_count(told.get("steps")),
        seconds=_number(told.get("seconds")),
        peak_memory=_count(told.get("peak_memory_bytes")),
        predicted_memory=_count(_mapping(told.get("estimate")).get("peak_memory_bytes")),
        device=_text(environment.get("device")),
        python=_text(environment.get("python")),
        packages=_texts(environment.get("packages")),
        git_commit=_sha(git.get("commit")),
        git_changed=git.get("dirty") is True,
        notices=_words(told.get("notices")),
    )


def packages(origin: Origin) -> str:
    """Python's version and the packages', in one line."""
    python = [f"Python {origin.python}"] if origin.python else []
    return ", ".join([*python, *(f"{name} {number}" for name, number in origin.packages.items())])


def git_state(origin: Origin) -> str | None:
    """The git commit of the folder that a run was started in, and whether its files were those of the commit."""
    if not origin.git_commit:
        return None
    return f"git commit {origin.git_commit}{', with changes on top' if origin.git_changed else ''}"


def _is_part(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("name"), str)


def _part(split: str, part: Mapping[str, Any]) -> DataPart:
    return DataPart(
        split=split,
        name=part["name"],
        rows=_count(part.get("rows")),
        sha256=_sha(part.get("sha256")),
        revision=_text(part.get("revision")),
        files=_texts(part.get("files")),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: Any) -> dict[str, str]:
    return {name: text for name, text in _mapping(value).items() if isinstance(text, str)}


def _words(value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
    return tuple(word for word in words if isinstance(word, str) and word)


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) and value >= 0 else None


def _sha(value: Any) -> str | None:
    return value if isinstance(value, str) and _SHA.fullmatch(value) else None
