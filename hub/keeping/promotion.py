"""Promoting: an alias moves to a version only if that version meets what is required of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorary.hub.errors import (
    InvalidReferenceError,
    PromotionRefusedError,
    RegistryConflictError,
    UnknownReferenceError,
    UsageError,
)
from lorary.hub.keeping.aliases import LONGEST, adapter_of, check_line, meaning, set_alias, signature
from lorary.hub.reference import check_name
from lorary.hub.tables.database import reading, writing
from lorary.hub.tables.lookup import locate
from lorary.hub.values import Check, Finding, Promotion, Version

if TYPE_CHECKING:
    from sqlite_utils import Database

    from lorary.hub.keeping.methods import Keeping

VERIFY = "verify"
"""The requirement that the version's files are what the catalogue says."""

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_COMPARISON = re.compile(r"(?P<metric>[^<>=]+)(?P<operator>>=|<=|==|>|<)(?P<value>[^<>=]+)")
_PLAIN = re.compile(rf"[+-]?{_NUMBER}")
_OFFSET = re.compile(rf"(?P<other>.+?)(?P<offset>[+-]\s*{_NUMBER})")
_EXAMPLES = "expected such as 'f1>=prod', 'f1>=prod+0.01', 'accuracy>=0.9', 'loss<=0.3' or 'verify'"
_SLACK = 1e-9  # so that 0.82 isn't less than 0.81 + 0.01, as binary fractions have it


@dataclass(frozen=True)
class Requirement:
    """A metric on held-out rows compared with a number, or with another version's metric plus an offset.

    ``readings`` are the versions that may be meant, each with its offset, the likeliest first: an alias may be called
    ``prod-2``. None of them: ``number`` is meant.
    """

    text: str
    metric: str
    operator: str
    number: float
    readings: tuple[tuple[str, float], ...]


def parse_requirement(text: str) -> Requirement | None:
    """Read a requirement; None stands for :data:`VERIFY`.

    Raises:
        UsageError: it has none of the forms.
    """
    shown = check_line(text, "a requirement")
    if shown == VERIFY:
        return None
    found = _COMPARISON.fullmatch(shown)
    if not found:
        raise UsageError(f"requirement {shown!r}: {_EXAMPLES}")
    metric, value = found["metric"].strip(), found["value"].strip()
    if _PLAIN.fullmatch(value):
        return Requirement(shown, metric, found["operator"], _finite(value, shown), ())
    readings = [(value, 0.0)]
    if offset := _OFFSET.fullmatch(value):
        readings.append((offset["other"].strip(), _finite("".join(offset["offset"].split()), shown)))
    return Requirement(shown, metric, found["operator"], 0.0, tuple(readings))


def _finite(text: str, shown: str) -> float:
    if not math.isfinite(number := float(text)):
        raise UsageError(f"requirement {shown!r}: {text} is too large a number")
    return number


def promote(
    registry: Keeping, reference: str, alias: str, require: Iterable[str], why: str | None, dry_run: bool
) -> Promotion:
    """See :meth:`lorary.hub.registry.Registry.promote`."""
    check_name(alias, "alias")
    require = tuple(text.strip() for text in require)  # the lines of a file have ends
    requirements = [parse_requirement(text) for text in require]
    by = signature(why, f"promoted: {', '.join(require) or 'nothing was required'}"[:LONGEST])
    version = registry.resolve(reference)
    # Hashing may take minutes and a version doesn't change: only the rest needs the lock.
    findings = registry.verify(version.reference) if None in requirements else []
    with reading(registry.path) if dry_run else writing(registry.path) as db:
        row_id, now = locate(db, reference, registry.path)
        assert db is not None
        if now.reference != version.reference:
            raise RegistryConflictError(f"{reference} has come to mean {now.reference} meanwhile; try again")
        judge = Judge(db, registry.path, version, alias)
        checks = tuple(judge.judge(requirements, findings))
        if refused := [f"{check.requirement}: {check.found}" for check in checks if not check.met]:
            raise PromotionRefusedError(f"{version.reference} is not promoted to {alias}", refused)
        before = meaning(db, adapter_of(db, version.name, registry.path), alias)
        if not dry_run:
            set_alias(db, row_id, alias, by)
    return Promotion(version.name, alias, before, version.number, checks, tuple(judge.notes))


class Judge:
    """Holds a version against requirements, inside a transaction; ``notes`` is what isn't for or against it."""

    def __init__(self, db: Database, path: Path, version: Version, alias: str) -> None:
        self._db, self._path, self._version, self._alias = db, path, version, alias
        self.notes: list[str] = []

    def judge(self, requirements: Iterable[Requirement | None], findings: Iterable[Finding]) -> Iterator[Check]:
        """A check for each requirement; ``findings`` is what verifying the version came upon."""
        for requirement in requirements:
            if requirement is not None:
                yield self._compare(requirement)
                continue
            wrong = [finding.message for finding in findings if finding.level == "error"]
            yield Check(VERIFY, not wrong, "; ".join(wrong) or "every file is what was registered")

    def _compare(self, requirement: Requirement) -> Check:
        metric, own = requirement.metric, self._version.metrics.get("test", {})
        if metric not in own:
            there = f"it has {', '.join(own)}" if own else "it has no metrics on held-out rows"
            return Check(requirement.text, False, f"{self._version.reference} has no {metric}; {there}")
        if not requirement.readings:
            return self._weigh(requirement, own[metric], requirement.number, f"required is {requirement.number:g}")
        found = self._other(requirement)
        if found is None:
            named = [self._reference(other) for other, _ in requirement.readings]
            if self._reference(self._alias) in named:
                return Check(requirement.text, True, f"holds, since nothing is {self._alias} yet")
            name, _, suffix = named[-1].partition("@")
            return Check(requirement.text, False, f"{name} has no version or alias {suffix!r}")
        other, offset = found
        theirs = other.metrics.get("test", {}).get(metric)
        if other.task != self._version.task:
            told = f"{other.reference} is for {other.task}, {self._version.reference} for {self._version.task}"
            return Check(requirement.text, False, f"{told}: their metrics can't be compared")
        if theirs is None:
            return Check(requirement.text, False, f"{other.reference} has no {metric} to compare with")
        self._note_differences(other)
        added = f", and {offset:+g} is {theirs + offset:g}" if offset else ""
        return self._weigh(requirement, own[metric], theirs + offset, f"{other.reference} has {theirs:g}{added}")

    def _other(self, requirement: Requirement) -> tuple[Version, float] | None:
        for other, offset in requirement.readings:
            try:
                return locate(self._db, self._reference(other), self._path)[1], offset
            except (UnknownReferenceError, InvalidReferenceError):
                continue
        return None

    def _reference(self, other: str) -> str:
        return other if "@" in other else f"{self._version.name}@{other}"

    def _weigh(self, requirement: Requirement, own: float, bound: float, told: str) -> Check:
        slack = _SLACK * max(1.0, abs(bound))
        met = {
            ">=": own >= bound - slack,
            "<=": own <= bound + slack,
            ">": own > bound + slack,
            "<": own < bound - slack,
            "==": abs(own - bound) <= slack,
        }[requirement.operator]
        return Check(requirement.text, met, f"{self._version.reference} has {own:g}, {told}")

    def _note_differences(self, other: Version) -> None:
        version, differences = self._version, []
        bases = [(one.base_fingerprint, one.base_id) for one in (other, version)]
        known = 0 if all(fingerprint for fingerprint, _ in bases) else 1
        if bases[0][known] != bases[1][known]:
            differences.append(f"trained on another base ({bases[0][1]}, not {bases[1][1]})")
        data = [_test_data(one) for one in (other, version)]
        if all(data) and data[0] != data[1]:
            differences.append("measured on other held-out rows")
        for difference in differences:
            note = f"{other.reference} was {difference}; the comparison may not be fair"
            if note not in self.notes:
                self.notes.append(note)


def _test_data(version: Version) -> str | None:
    """The hash of the held-out rows' file, out of a manifest that anybody may have written."""
    value: Any = version.manifest.provenance if version.manifest else None
    for key in ("data", "test", "sha256"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else None
