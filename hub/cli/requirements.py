"""Which installed packages are outside the ranges that lorary asks for, as an unexpected error may come from those."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version


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
