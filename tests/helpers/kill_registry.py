"""Kills commands with SIGKILL at random moments; after every kill the registry must be whole.

    python tests/helpers/kill_registry.py                       # two hundred kills, a minute or two
    python tests/helpers/kill_registry.py --kills 20 --only train --seed 3

A command runs in a fork and is killed at a moment drawn from the time that it takes. Then `verify` must find nothing
wrong, what the command didn't work on must be there still, each alias must mean what its history says, and a version
that came with an alias must have it.

Another command is another line in :data:`COMMANDS`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from checkpoints import lora_tensors, make_checkpoint, write_safetensors
from lorary.hub import Registry
from lorary.hub.cli.main import main
from lorary.hub.cli.options import open_registry
from lorary.hub.remote import pull, push
from lorary.hub.remote.folder import SharedFolder

os.environ.setdefault("HF_HUB_OFFLINE", "1")

NAME = "tone"
_SOURCES = 8
_KEPT = 6  # versions, so that a removal always has something to remove and the registry doesn't grow


@dataclass
class Scene:
    """A registry and what the commands need beside it."""

    folder: Path
    draw: random.Random
    sources: list[Path] = field(default_factory=list)

    @property
    def registry(self) -> Registry:
        """The registry that the commands work on."""
        return open_registry(self.folder / "registry.db")

    def setup(self) -> None:
        """Make the checkpoints to import, and a first state of the registry."""
        for seed in range(_SOURCES):
            folder = make_checkpoint(self.folder / f"checkpoints/{seed}", seed=seed)
            write_safetensors(folder / "adapter_model.safetensors", lora_tensors(seed, rank=8, width=8000))
            self.sources.append(folder)
        for source in self.sources[:3]:
            self.registry.add(source, name=NAME, metrics={"test": {"f1": self.draw.random()}})
        for number in (1, 2):
            self.registry.alias(NAME, "prod", number)

    def numbers(self) -> list[int]:
        """The versions' numbers."""
        return [version.number for version in self.registry.versions(NAME)]

    def top_up(self) -> None:
        """Bring the registry back to a size at which every command has something to do."""
        registry = self.registry
        while len(self.numbers()) > _KEPT:
            registry.remove(f"{NAME}@{self.numbers()[0]}", force=True)
        while len(self.numbers()) < 3:
            registry.add(self._unregistered(), name=NAME, metrics={"test": {"f1": self.draw.random()}})
        if not any("prod" in version.aliases for version in registry.versions(NAME)):
            registry.alias(NAME, "prod", self.numbers()[0])

    def _unregistered(self) -> Path:
        held = {version.files["adapter_model.safetensors"].sha256 for version in self.registry.versions(NAME)}
        from lorary.hub.files.store import hash_file

        return next(one for one in self.sources if hash_file(one / "adapter_model.safetensors").sha256 not in held)

    def one(self) -> str:
        """The reference of a random version."""
        return f"{NAME}@{self.draw.choice(self.numbers())}"


def _import(scene: Scene) -> list[str]:
    name = scene.draw.choice((NAME, "other"))
    source = str(scene.draw.choice(scene.sources))
    return ["import", source, "--name", name, "--alias", NAMED["import"], "--tag", "killed"]


def _import_registry(scene: Scene) -> list[str]:
    other = Registry(scene.folder / "other" / "registry.db")
    for version in scene.registry.versions("theirs"):
        scene.registry.remove(version.reference, force=True)
    for seed in (0, 1):
        other.add(scene.sources[seed], name="theirs", aliases=["prod"])
    for number in (1, 2):
        other.alias("theirs", scene.draw.choice(("prod", "candidate")), number)
    return ["import", str(other.path)]


def _gc(scene: Scene) -> list[str]:
    stray = scene.folder / "registry.store" / "objects" / "ab" / scene.draw.randbytes(31).hex()
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"x" * 1000)
    return ["gc"]


def _rollback(scene: Scene) -> list[str]:
    for number in scene.numbers()[-2:]:
        scene.registry.alias(NAME, "prod", number)
    return ["rollback", NAME, "prod"]


def _push(scene: Scene) -> list[str]:
    share = scene.folder / f"share-{scene.draw.randrange(10**9)}"
    share.mkdir()
    return ["push", scene.one(), f"file://{share}"]


def _pull(scene: Scene) -> list[str]:
    team = scene.folder / "team"
    if not team.exists():
        team.mkdir()
        shared = scene.one()
        scene.registry.alias(NAME, NAMED["pull"], int(shared.rpartition("@")[2]))
        push(scene.registry, shared, f"file://{team}")
    for version in scene.registry.versions("pulled"):
        scene.registry.remove(version.reference, force=True)
    return ["pull", f"file://{team}/{NAME}", "--name", "pulled"]


def _check_shares(scene: Scene) -> None:
    """What a killed push left in a shared folder: a whole version, or none."""
    for share in scene.folder.glob("share-*"):
        for place in share.iterdir():
            if SharedFolder(place).state() and any((place / "versions").iterdir()):
                pulled = pull(Registry(scene.folder / "scratch.db"), f"file://{place}", name=place.name)
                assert pulled.number is not None
        shutil.rmtree(share)


def _train(scene: Scene) -> list[str]:
    base, rows = scene.folder / "base", scene.folder / "rows.jsonl"
    if not rows.exists():
        assert _forked(lambda: _make_base(base, rows), None) == 0
    for run in scene.folder.glob("run-*"):
        shutil.rmtree(run)
    flags = {
        "name": "trained",
        "domain": "finance",
        "task": "text-classification",
        "base": base,
        "data": rows,
        "epochs": 1,
        "rank": 2,
        "device": "cpu",
        "alias": NAMED["train"],
        "seed": scene.draw.randrange(10**6),  # another adapter each time
        "output": scene.folder / f"run-{scene.draw.randrange(10**6)}",
    }
    return ["train", *(word for flag, value in flags.items() for word in (f"--{flag}", str(value)))]


def _make_base(base: Path, rows: Path) -> int:
    from samples import tone_rows, write_jsonl
    from tiny import make_base

    make_base("bert", base)
    write_jsonl(rows, tone_rows(24))
    return 0


COMMANDS: dict[str, Callable[[Scene], list[str]]] = {
    "import": _import,
    "import of a registry": _import_registry,
    "rm": lambda scene: ["rm", scene.one(), "--force"],
    "gc": _gc,
    "alias": lambda scene: ["alias", scene.one(), scene.draw.choice(("prod", "candidate"))],
    "promote": lambda scene: ["promote", scene.one(), "--to", "prod", "--require", "verify"],
    "rollback": _rollback,
    "push": _push,
    "pull": _pull,
    "train": _train,
}
"""The words of each command, without ``--registry``."""

NAMED = {"import": "new", "pull": "shared", "train": "trained"}
"""The alias that each of these gives to the version that it brings."""

SLOW = ("train",)
"""Commands that take seconds; of the others there are ten times as many kills."""


def _forked(action: Callable[[], int], kill_after: float | None) -> int:
    """Run ``action`` in a fork; its exit code, or -9 if it was killed before it was through."""
    if not (child := os.fork()):
        code = 1
        try:
            sink = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(sink, stream)
            code = action()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check(scene: Scene, name: str, words: Sequence[str], before: dict[str, str]) -> None:
    """Is the registry whole, and is all there that the command had nothing to do with?"""
    touched = {words[1]} if name == "rm" else set()
    _check_shares(scene)
    registry = scene.registry
    wrong = [finding for finding in registry.verify() if finding.level == "error"]
    assert wrong == [], wrong
    now = {version.reference: version.digest for version in registry.versions()}
    lost = {reference for reference, digest in before.items() if now.get(reference) != digest} - touched
    assert not lost, f"lost {lost}"
    if alias := NAMED.get(name):
        bare = {v.reference for v in registry.versions() if v.reference not in before and alias not in v.aliases}
        assert not bare, f"{bare} came without {alias}"
    for adapter in {version.name for version in registry.versions()}:
        meant = {alias: version.number for version in registry.versions(adapter) for alias in version.aliases}
        history: dict[str, int | None] = {}
        for move in registry.alias_history(adapter):
            assert history.get(move.alias) == move.from_number, f"{adapter}@{move.alias}: a gap before move {move.id}"
            history[move.alias] = move.to_number
        assert meant == {alias: number for alias, number in history.items() if number is not None}, adapter


def _prepare(scene: Scene, name: str) -> tuple[list[str], dict[str, str]]:
    """A command's words, and the digests of the versions that are there before it."""
    scene.top_up()
    words = [*COMMANDS[name](scene), "--registry", str(scene.registry.path)]
    return words, {version.reference: version.digest for version in scene.registry.versions()}


def _whole(scene: Scene, name: str) -> float:
    """Run a command without killing it; the seconds that it takes."""
    words, before = _prepare(scene, name)
    started = time.perf_counter()
    code = _forked(lambda: main(words), None)
    seconds = time.perf_counter() - started
    assert code == 0, f"lorary {' '.join(words)} exits with {code}"
    check(scene, name, words, before)
    return seconds


def run(folder: Path, kills: int, seed: int, commands: Sequence[str]) -> Counter[str]:
    """Kill that many commands; how often each was."""
    scene = Scene(folder, random.Random(seed))
    scene.setup()
    with redirect_stdout(StringIO()):
        main(["--help"])  # imports all commands, so that the kills don't fall into that
    lasts = {name: _whole(scene, name) for name in commands}
    weights = [1 if name in SLOW else 10 for name in commands]
    killed: Counter[str] = Counter()
    while killed.total() < kills:
        name = scene.draw.choices(commands, weights)[0]
        words, before = _prepare(scene, name)
        if _forked(lambda words=words: main(words), scene.draw.uniform(0, lasts[name])) == -signal.SIGKILL:
            killed[name] += 1
        else:
            lasts[name] *= 0.9  # it was through already
        check(scene, name, words, before)
    scene.registry.collect()
    left = [finding for finding in scene.registry.verify() if "file(s)" not in finding.message]
    assert left == [], left
    return killed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(COMMANDS), help="commands, separated by commas")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="lorary-kills-") as temporary:
        started = time.perf_counter()
        found = run(Path(temporary), arguments.kills, arguments.seed, arguments.only.split(","))
        told = ", ".join(f"{name} {count}" for name, count in sorted(found.items()))
        print(f"{found.total()} kills in {time.perf_counter() - started:.0f} s, whole after each: {told}")
        sys.exit(0)
