"""What in the catalogue a run could start from: adapters on the same base whose low-rank weights it can go on with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorary.hub.errors import LoraryError, RecipeError
from lorary.hub.finding.search import Filter
from lorary.hub.provenance.private import public_base
from lorary.hub.registry import Registry
from lorary.hub.values import Version
from lorary.training.advisor.setting import Setting, with_settings
from lorary.training.model import Base, resolve_targets
from lorary.training.recipe import Recipe
from lorary.training.strategies.inherit import inherit, inherited_recipe
from lorary.training.strategies.parent import Parent, find_parent
from lorary.training.tasks import Task

_TOLD = 5


@dataclass(frozen=True)
class Candidates:
    """Those that are tried, the nearest to the recipe first; lines on those that can't be; how many are left."""

    tried: tuple[Version, ...]
    refused: tuple[str, ...]
    left: int


def candidates(
    recipe: Recipe, fingerprint: str | None, provenance: Mapping[str, Any], registry: Registry, most: int,
    takes: Callable[[Version], bool], on_meta: Callable[[Recipe, Parent], tuple[Task, Base]],
) -> Candidates:  # fmt: skip
    """The newest version of each name on the base, those of the recipe's domain first, then those of its task.

    Left out are those that have seen the rows with their answers, whatever they would make of them: those of the
    recipe's own name, those that were trained on one of the recipe's files, and those that were trained from such.

    Args:
        recipe: what is to be trained, from nothing so far.
        fingerprint: the base's.
        provenance: the rows', as :func:`lorary.training.data.load_data` gives it.
        registry: the catalogue.
        most: how many are tried.
        takes: can a version be measured for the task?
        on_meta: the task and base of a recipe that starts from a parent, without weights.
    """
    try:
        with_settings(recipe, start_settings(recipe, "any", recipe.task, ""))
    except RecipeError as error:
        return Candidates((), (f"no adapter is tried as a start: {error.problems[0]}",), 0)
    # By its id too: what was made elsewhere carries no fingerprint, and the loader tells whether it fits.
    known = [one for one in (fingerprint, public_base(recipe.base)) if one is not None]
    found = (version for one in known for version in registry.search(Filter(base=one)).each())
    versions = {version.reference: version for version in found if isinstance(version, Version)}
    files = _files(provenance, ("train", "validation", "test"))
    # What has read a file's texts alone doesn't know labels beside them; where texts are the answers, it knows those.
    labelled = bool(recipe.data.columns.named().keys() & {"label", "tags"} or recipe.data.label_columns)
    seen = {
        reference
        for reference, version in versions.items()
        if version.name == recipe.name
        or (not (labelled and version.strategy == "continual") and files & _files(_data_of(version)))
    }
    newest = {version.name: version for version in sorted(versions.values(), key=lambda one: one.number)}
    tried: list[Version] = []
    refused: list[str] = []
    ahead = sorted(filter(takes, newest.values()), key=lambda one: _nearness(recipe, one))
    while ahead and len(tried) < most:
        version = ahead.pop(0)
        if seen & _ancestry(version, versions):
            refused.append(f"{version.reference} isn't tried: it, or what it comes from, has learned from these rows")
            continue
        try:
            _demand_fit(recipe, version, registry, on_meta)
        except LoraryError as error:
            refused.append(not_tried(version, error))
        else:
            tried.append(version)
    more = len(refused) - _TOLD
    told = [*refused[:_TOLD], f"{more} more aren't tried either"] if more > 0 else refused
    return Candidates(tuple(tried), tuple(told), len(ahead))


def not_tried(version: Version, error: LoraryError) -> str:
    """What the user is told of an adapter that can't be a start."""
    return f"{version.reference} isn't tried: {str(error).removeprefix(f'{version.reference}: ')}"


def start_settings(recipe: Recipe, reference: str, task: str, why: str) -> list[Setting]:
    """To go on with an adapter's weights: as the same task, or as a stage after it."""
    stage = [Setting("strategy", "intermediate", why)] if task != recipe.task else []
    return [*stage, Setting("from", reference, why)]


def _demand_fit(
    recipe: Recipe, version: Version, registry: Registry, on_meta: Callable[[Recipe, Parent], tuple[Task, Base]]
) -> None:
    """Raise a LoraryError where a run couldn't go on with the version's weights."""
    changed = with_settings(recipe, start_settings(recipe, version.reference, version.task, ""))
    parent = find_parent(changed, registry)
    assert parent is not None  # the recipe names it
    task, base = on_meta(changed, parent)
    inherited = inherited_recipe(changed, base, inherit(parent, base, task, lambda line: None))
    resolve_targets(base.model, inherited.lora.targets, base.saved)


def _nearness(recipe: Recipe, version: Version) -> tuple[bool, bool, str]:
    return version.domain != recipe.domain, version.task != recipe.task, version.name


def _ancestry(version: Version, versions: Mapping[str, Version]) -> set[str]:
    """A version's reference, and those of all that it was trained from."""
    found, ahead = set[str](), [version.reference]
    while ahead:
        reference = ahead.pop()
        if reference not in found:
            found.add(reference)
            ahead += versions[reference].parents if reference in versions else ()
    return found


def _data_of(version: Version) -> Mapping[str, Any]:
    told = version.manifest.provenance.get("data") if version.manifest else None
    return told if isinstance(told, Mapping) else {}


def _files(provenance: Mapping[str, Any], parts: Sequence[str] = ("train", "validation")) -> set[tuple[str, str]]:
    """What the rows of these parts were read from: a file's hash, or a dataset's name and commit."""
    told = [one for part in parts if isinstance(one := provenance.get(part), Mapping)]
    return {(str(one.get("sha256") or one.get("name")), str(one.get("revision"))) for one in told}
