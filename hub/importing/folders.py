"""Importing every adapter below a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorary.hub.checkpoint import Checkpoint, read_checkpoint
from lorary.hub.errors import CheckpointError, LoraryError, RegistryConflictError, RegistryError, UsageError
from lorary.hub.importing.discover import Found, Run, find_runs
from lorary.hub.importing.mlx import is_mlx, read_mlx, unknown_copy
from lorary.hub.importing.origin import with_origin
from lorary.hub.importing.outcome import Outcome, Watch, unwatched
from lorary.hub.importing.traces import Traces, read_traces
from lorary.hub.provenance.base_name import demand_base, on_base, unknown_base
from lorary.hub.registry import Registry
from lorary.hub.values import Version


def import_folders(
    registry: Registry,
    root: Path,
    *,
    every: bool = False,
    name: str | None = None,
    domain: str | None = None,
    task: str | None = None,
    tags: Iterable[str] = (),
    alias: str | None = None,
    base: str | None = None,
    watch: Watch = unwatched,
) -> Iterator[Outcome]:
    """Import the adapter in ``root``, or every one below it; what was done with each, as it is done.

    Of a run's checkpoints the finished adapter is taken, else the newest that can be read; with ``every`` all of them,
    oldest first, as versions of one name. Settings and metrics of foreign adapters are read off what their trainers
    left.

    Args:
        registry: where to.
        root: an adapter's folder, a run's, or one of many.
        every: take all checkpoints.
        name: the adapter's; by default the run's folder's. For one run only.
        domain: of all of them; by default what their manifests say.
        task: of all of them; by default what each says.
        tags: for all of them.
        alias: what the adapter is to be called too. For one run only.
        base: the id of their base, or its folder, of which only the name is kept; by default what each says.
        watch: told of each adapter before it is looked at.

    Raises:
        CheckpointError: there is no such folder, or no adapter in it.
        UsageError: a name or an alias was given, and there are several runs.
        LoraryError: there is one adapter alone, and it can't be taken; of several this is an outcome.
    """
    root = root.expanduser()
    runs, left = _runs(root, name, alias)
    alone = len(runs) == 1 and len(runs[0].adapters) == 1 and not left
    tags = tuple(tags)
    seen, total = 0, sum(len(run.adapters) for run in runs)
    for run in runs:
        adapters = run.adapters[::-1] if every else run.adapters
        taken: Found | None = None
        version: Version | None = None
        for found in adapters:
            shown = _shown(found.folder, root)
            watch(shown, seen, total)
            seen += 1
            if taken is not None and not every:
                why = "the run's finished adapter" if taken.step is None else f"checkpoint {taken.step}"
                yield Outcome(shown, "passed over", note=f"{why} stands for the run; --all takes every one")
                continue
            try:
                # Of several the alias is for the last, so that it moves once.
                aliases = [alias] if alias is not None and (not every or found is adapters[-1]) else []
                outcome, version = _take(
                    registry, found, shown, run.name if name is None else name, domain, task, base, tags, aliases
                )
            except LoraryError as error:
                if alone or (isinstance(error, RegistryError) and not isinstance(error, RegistryConflictError)):
                    raise
                yield Outcome(shown, "refused", note=str(error))
                continue
            taken = found
            yield outcome
        if alias is not None and version is not None and alias not in version.aliases:  # the last was refused
            registry.alias(version.name, alias, version.number)
    for folder, why in left.items():
        yield Outcome(_shown(folder, root), "refused", note=why)


def _runs(root: Path, name: str | None, alias: str | None) -> tuple[list[Run], dict[Path, str]]:
    """What :func:`find_runs` finds in a folder. Raises as :func:`import_folders`."""
    if not root.is_dir():
        raise CheckpointError(f"{root}: no such folder, and no registry; name a folder that holds adapters")
    runs, left = find_runs(root)
    if not runs and not left:
        raise CheckpointError(
            f"{root}: no adapter in it or below it; expected adapter_config.json and adapter_model.safetensors, as "
            "PEFT's save_pretrained writes them"
        )
    for what, given in (("name", name), ("alias", alias)):
        if given is not None and len(runs) > 1:
            raise UsageError(
                f"{root}: holds {len(runs)} adapters, which can't all have the {what} {given!r}; leave it out"
            )
    return runs, left


def _take(
    registry: Registry, found: Found, shown: str, name: str, domain: str | None, task: str | None, base: str | None,
    tags: tuple[str, ...], aliases: Sequence[str],
) -> tuple[Outcome, Version]:  # fmt: skip
    before = registry.numbers(name)
    with (
        _read(found.folder) as (checkpoint, of_mlx),
        on_base(checkpoint, base) as based,
        with_origin(based, _kept(traces := read_traces(found, checkpoint, of_mlx))) as whole,
    ):
        if base is not None:
            same = (version for version in registry.with_digest(based.digest) if version.name == name)
            demand_base(next(same, None), based, base, registry.path)
        version = registry.add(
            whole, name=name, domain=domain, task=task, tags=tags, metrics=traces.metrics, aliases=aliases
        )
    note = unknown_base(based)
    notes = [f"left: {', '.join(traces.left)}"] if traces.left else []
    notes += traces.notes
    notes += [note for note in (note, unknown_copy(of_mlx, base)) if note]
    if version.number in before:
        return Outcome(shown, "there already", version.reference), version
    return Outcome(shown, "taken", version.reference, "; ".join(notes)), version


@contextmanager
def _read(folder: Path) -> Iterator[tuple[Checkpoint, Mapping[str, Any]]]:
    """The checkpoint in a folder; where it is mlx-lm's, made into PEFT's, and mlx-lm's own config."""
    if is_mlx(folder):
        with read_mlx(folder) as (checkpoint, told):
            yield checkpoint, told
    else:
        yield read_checkpoint(folder), {}


def _kept(traces: Traces) -> Mapping[str, Any]:
    """What is told, where that is more than the adapter's own config says."""
    told = traces.told
    more = (
        traces.metrics
        or told.get("data")
        or told.get("steps")
        or told.get("embedding")
        or told["imported"]["tool"]
        or told["imported"]["checkpoint"] is not None
        or set(told.get("recipe", {})) - {"lora"}
    )
    return told if more else {}


def _shown(folder: Path, root: Path) -> str:
    return str(folder.relative_to(root)) if folder != root else str(root)
