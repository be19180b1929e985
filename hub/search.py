"""What `find` looks for: conditions on the rows, and words."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lorary.hub.catalogue import check_task
from lorary.hub.errors import UsageError
from lorary.hub.reference import normalise_domain
from lorary.hub.values import Version

Condition = tuple[str, tuple[str, ...]]
"""A condition for :func:`lorary.hub.catalogue.select`, and its parameters."""


def conditions_for(
    *, domain: str | None, task: str | None, base: str | None, method: str | None, tag: str | None
) -> list[Condition]:
    """The conditions for what is given; a base is an id or a fingerprint.

    Raises:
        UsageError: a domain, task or tag that can't be one.
    """
    conditions: list[Condition] = []
    if domain is not None:
        conditions.append(("a.domain = ?", (normalise_domain(domain),)))
    if task is not None:
        conditions.append(("a.task = ?", (check_task(task),)))
    if method is not None:
        conditions.append(("v.method = ?", (method.lower(),)))
    if tag is not None:
        conditions.append(("v.id IN (SELECT version_id FROM tags WHERE tag = ?)", normalise_tags([tag])))
    if base is not None:
        # The third part finds what was trained on the same base under another id.
        same_base = "v.base_fingerprint IN (SELECT fingerprint FROM bases WHERE id = ?)"
        conditions.append((f"v.base_id = ? OR v.base_fingerprint = ? OR {same_base}", (base, base, base)))
    return conditions


def normalise_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags in their one spelling, each once.

    Raises:
        UsageError: a single text in place of several, or a tag of which nothing is left.
    """
    if isinstance(tags, str):
        raise UsageError(f"tags: expected several words, found the one text {tags!r}")
    return tuple(dict.fromkeys(normalise_domain(tag, "tag") for tag in tags))


def mentions(version: Version, words: Collection[str]) -> bool:
    """True when each of the (casefolded) words occurs somewhere in what the catalogue says about the version."""
    labels = version.manifest.labels or () if version.manifest else ()
    parts = (version.name, version.domain, version.task, version.base_id or "", version.method, version.strategy)
    text = "\n".join([*parts, *version.tags, *version.aliases, *labels]).casefold()
    return all(word in text for word in words)
