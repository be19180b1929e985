"""Importing all that another registry holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lorary.hub.errors import LoraryError, RegistryError
from lorary.hub.importing.histories import carry_aliases
from lorary.hub.importing.outcome import Outcome, Watch, unwatched
from lorary.hub.keeping.verification import demand_registered
from lorary.hub.registry import Registry
from lorary.hub.values import Unreadable, Version


def import_registry(registry: Registry, path: Path, watch: Watch = unwatched) -> Iterator[Outcome]:
    """Import all versions of the registry at ``path``, with metrics, tags, aliases, lineage and pretrained bases.

    A version whose digest its name has here already is passed over, so an import that was broken off is finished by
    another one. Versions get the next free numbers; parents are followed. Aliases come last, with their history, see
    :func:`~lorary.hub.importing.histories.carry_aliases`; one that means another version here stays.

    Args:
        registry: where to.
        path: the other registry's file.
        watch: told of each version before it is copied.

    Raises:
        RegistryError: it isn't a registry, or it is the same one.
    """
    other = Registry(path)
    if other.path.resolve() == registry.path.resolve():
        raise RegistryError(f"{path}: is the registry to import into; name another one")
    yield from _bases(registry, other)
    references: dict[str, str] = {}
    found = other.each()
    yield from (Outcome(one.reference, "refused", note=one.problem) for one in found if isinstance(one, Unreadable))
    versions = list(_parents_first([one for one in found if isinstance(one, Version)]))
    for index, version in enumerate(versions):
        watch(version.reference, index, len(versions))
        try:
            outcome = _take(registry, other, version, references)
        except LoraryError as error:
            yield Outcome(version.reference, "refused", note=str(error))
            continue
        assert outcome.reference is not None
        references[version.reference] = outcome.reference
        yield outcome
    yield from _aliases(registry, other, versions, references)


def _take(registry: Registry, other: Registry, version: Version, references: dict[str, str]) -> Outcome:
    before = registry.numbers(version.name)
    folders = other.bases.folders_of(version.base_id) if version.base_id else []
    checkpoint = other.checkpoint(version)
    demand_registered(version, checkpoint)
    ours = registry.add(
        checkpoint,
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
    return Outcome(version.reference, "there already" if ours.number in before else "taken", ours.reference)


def _parents_first(versions: list[Version]) -> Iterator[Version]:
    """In their order, but each after those that it was trained from."""
    waiting = {version.reference: version for version in versions}
    while waiting:
        ready = [version for version in waiting.values() if not any(parent in waiting for parent in version.parents)]
        for version in ready or list(waiting.values()):  # a damaged registry may hold a circle
            yield waiting.pop(version.reference)


def _aliases(
    registry: Registry, other: Registry, versions: Sequence[Version], references: Mapping[str, str]
) -> Iterator[Outcome]:
    """Carry the aliases over; what is said of those that can't be set."""
    numbers: defaultdict[str, dict[int, int]] = defaultdict(dict)
    means: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for version in versions:
        if ours := references.get(version.reference):
            numbers[version.name][version.number] = int(ours.rpartition("@")[2])
        means[version.name].update(dict.fromkeys(version.aliases, version.number))
    for name, known in numbers.items():
        try:
            for alias, note in carry_aliases(registry, other, name, known, means[name]):
                yield Outcome(f"{name}@{alias}", "passed over", note=note)
        except LoraryError as error:
            yield Outcome(f"{name}'s aliases", "refused", note=str(error))


def _bases(registry: Registry, other: Registry) -> Iterator[Outcome]:
    for base in other.bases.each():
        if isinstance(base, Unreadable):
            yield Outcome(f"base {base.reference}", "refused", note=base.problem)
            continue
        shown = f"base {base.name}"
        try:
            known = registry.bases.find(base.name)
            if known is not None and known.digest == base.digest:
                yield Outcome(shown, "there already", base.name)
                continue
            registry.bases.add(
                base.folder,
                name=base.name,
                fingerprint=base.fingerprint,
                architecture=base.architecture,
                parameters=base.parameters,
                metrics=base.metrics,
                provenance=base.provenance,
                expected=base.digest,
            )
        except LoraryError as error:
            yield Outcome(shown, "refused", note=str(error))
        else:
            yield Outcome(shown, "taken", base.name)
