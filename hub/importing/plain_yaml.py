"""YAML from strangers."""

from __future__ import annotations

from typing import Any

import yaml

_LARGEST = 1_000_000  # characters


def load_plain_yaml(text: str) -> Any:
    """Parse YAML without aliases, by which a few lines could stand for more values than memory holds.

    Raises:
        ValueError: it isn't YAML, has aliases, or is absurdly long.
    """
    if len(text) > _LARGEST:
        raise ValueError(f"{len(text)} characters of YAML")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("YAML with aliases")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not valid YAML ({error})") from error
