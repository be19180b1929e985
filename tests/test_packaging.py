"""What a wheel takes along: pyproject.toml names packages and data one by one, since the rooms stand at the root."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("hub", "adapters", "training", "examples")
CODE = {".py", ".c", ".typed", ".j2", ".sql", ".html", ".css", ".js"}
DATA = {".jsonl", ".txt", ".yaml", ".md"}


def files_of(room):
    """The room's files that a user needs, by their place in a wheel."""
    for path in (ROOT / room).rglob("*"):
        inside = path.relative_to(ROOT)
        hidden = any(part.startswith((".", "__py")) for part in inside.parts)
        made_by = room == "examples" and path.suffix == ".py" and path.parent != ROOT / room  # what made the rows
        if path.suffix in (CODE | DATA if room == "examples" else CODE) and not hidden and not made_by:
            yield f"lorary/{inside.as_posix()}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel, built without the network from a copy of the tree: building leaves its own files there."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for room in ROOMS:
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    built = subprocess.run([*command, "-w", out, tree], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("lorary-*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_every_package_of_the_rooms_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = {name for name in project["tool"]["setuptools"]["packages"] if not name.endswith(".examples")}
    folders = (file.parent for room in ("hub", "adapters", "training") for file in (ROOT / room).rglob("__init__.py"))
    assert named == {".".join(["lorary", *folder.relative_to(ROOT).parts]) for folder in folders}


def test_every_folder_with_code_is_a_package():
    for room in ROOMS[:3]:
        for path in (ROOT / room).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path.parent


@pytest.mark.parametrize("room", ROOMS)
def test_a_wheel_holds_what_the_tree_holds(room, wheel):
    wanted = set(files_of(room))
    assert wanted
    assert wanted - wheel == set()
    assert {name for name in wheel if name.startswith(f"lorary/{room}/")} - wanted == set()


def test_a_wheel_holds_templates_recipes_examples_and_launch_settings(wheel):
    assert {"lorary/training/report/page.html.j2", "lorary/adapters/kernel/mixed_rows.c"} <= wheel
    for pattern in ("recipes/text-classification.yaml", "garden-notes/train.txt", "accelerate/ddp.yaml", "README.md"):
        assert f"lorary/examples/{pattern}" in wheel
    assert not any(name.startswith(("tests/", "benchmarks/", "lorary/tests")) for name in wheel)
