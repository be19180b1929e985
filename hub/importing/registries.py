"""Importing all that another registry holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorary.hub.errors import LoraryError, RegistryError
from lorary.hub.importing.outcome import Outcome, State
from lorary.hub.registry import Registry
from lorary.hub.values import Version


def import_registry(registry: Registry, path: Path) -> Iterator[Outcome]:
    """Import all versions of the registry at ``path``, with metrics, tags, aliases, lineage and pretrained bases.

    A version whose digest its name has here already is passed over, so an import that was broken off is finished by
    another one. Versions get the next free numbers; parents are followed. An alias that means another version here
    stays.

    Raises:
        RegistryError: it isn't a registry, or it is the same one.
    """
    other = Registry(path)
    if other.path.resolve() == registry.path.resolve():
        raise RegistryError(f"{path}: is the registry to import into; name another one")
    yield from _bases(registry, other)
    references: dict[str, str] = {}
    for version in _parents_first(other.versions()):
        try:
            outcome, ours = _take(registry, other, version, references)
        except LoraryError as error:
            yield Outcome(version.reference, "refused", note=str(error))
            continue
        references[version.reference] = ours.reference
        kept = list(_aliases(registry, version, ours))
        yield Outcome(outcome.source, outcome.state, outcome.reference, "; ".join(kept))


def _take(registry: Registry, other: Registry, version: Version, references: dict[str, str]) -> tuple[Outcome, Version]:
    before = {known.number for known in registry.versions(version.name)}
    folders = other.bases.folders_of(version.base_id) if version.base_id else []
    ours = registry.add(
        other.checkpoint(version),
        name=version.name,
        domain=version.domain,
        task=version.task,
        metrics=version.metrics,
        tags=version.tags,
        parents=[references[parent] for parent in version.parents if parent in references],
        absent_parents=[parent for parent in version.parents if parent not in references],
        strategy=version.strategy,
        base_folder=folders[0] if len(folders) == 1 else None,
        created_at=version.created_at,
    )
    state: State = "there already" if ours.number in before else "taken"
    return Outcome(version.reference, state, ours.reference), ours


def _parents_first(versions: list[Version]) -> Iterator[Version]:
    """In their order, but each after those that it was trained from."""
    waiting = {version.reference: version for version in versions}
    while waiting:
        ready = [version for version in waiting.values() if not any(parent in waiting for parent in version.parents)]
        for version in ready or list(waiting.values()):  # a damaged registry may hold a circle
            yield waiting.pop(version.reference)


def _aliases(registry: Registry, version: Version, ours: Version) -> Iterator[str]:
    """Set the version's aliases; what is said of those that stay where they are."""
    there = {alias: known for known in registry.versions(version.name) for alias in known.aliases}
    for alias in version.aliases:
        known = there.get(alias)
        if known is None:
            registry.alias(ours.name, alias, ours.number, why="imported with the version")
        elif known.number != ours.number:
            yield f"{alias} stays on {known.reference}"


def _bases(registry: Registry, other: Registry) -> Iterator[Outcome]:
    for base in other.bases.all():
        shown = f"base {base.name}"
        known = registry.bases.find(base.name)
        if known is not None and known.digest == base.digest:
            yield Outcome(shown, "there already", base.name)
            continue
        try:
            registry.bases.add(
                base.folder,
                name=base.name,
                fingerprint=base.fingerprint,
                architecture=base.architecture,
                parameters=base.parameters,
                metrics=base.metrics,
                provenance=base.provenance,
            )
        except LoraryError as error:
            yield Outcome(shown, "refused", note=str(error))
        else:
            yield Outcome(shown, "taken", base.name)
