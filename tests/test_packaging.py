"""What a wheel takes along: pyproject.toml names the packages one by one, since the rooms stand at the root."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_of_the_rooms_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = {name for name in project["tool"]["setuptools"]["packages"] if not name.endswith(".examples")}
    folders = (file.parent for room in ("hub", "adapters", "training") for file in (ROOT / room).rglob("__init__.py"))
    assert named == {".".join(["lorary", *folder.relative_to(ROOT).parts]) for folder in folders}
