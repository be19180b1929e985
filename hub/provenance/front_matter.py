"""What the README of a model or a data set says in its front matter: its license and its languages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LARGEST = 5_000_000  # bytes; the front matter is at the beginning of a text that people read


@dataclass(frozen=True)
class Terms:
    """The license, as the README spells it, and the languages' codes; None and empty where it says nothing."""

    license: str | None = None
    languages: tuple[str, ...] = ()


def read_front_matter(readme: Path) -> Mapping[str, Any]:
    """The YAML at the beginning of a README; nothing where there is none, or none that can be read."""
    import yaml
    from huggingface_hub.repocard import metadata_load

    try:
        found = metadata_load(readme) if readme.is_file() and readme.stat().st_size <= _LARGEST else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found or {}


def read_terms(readme: Path) -> Terms:
    """A README's :class:`Terms`."""
    return terms_in(read_front_matter(readme))


def terms_in(told: Mapping[str, Any]) -> Terms:
    """The :class:`Terms` of a front matter, by the Hub's names of them."""
    name = _texts(told.get("license_name" if told.get("license") == "other" else "license"))
    return Terms(name[0] if name else _first(told.get("license")), _texts(told.get("language")))


def _first(value: Any) -> str | None:
    return next(iter(_texts(value)), None)


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    # YAML 1.1 reads Norwegian's code as a truth value.
    texts = ("no" if item is False else item for item in values)
    return tuple(text for text in texts if isinstance(text, str) and text)
