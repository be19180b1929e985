"""The label names of a task: those that a recipe lists, or those of the training rows."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lorary.hub.errors import DataError
from lorary.hub.manifest import MULTI_LABEL
from lorary.training.data.examples import Example, Note
from lorary.training.data.files.source import SHOWN_PROBLEMS, report
from lorary.training.recipe.raw import nearest, shown, some

Check = Callable[[Any], str | None]

_NUMBER = re.compile(r"-?\d+")

_BETWEEN_LABELS = ("|", ";", ",")

_NO_LABEL = ("-1", "-")
"""What the ``datasets`` library and SNLI write where a row has no label; others mean something else by them."""


def find_labels(
    parts: dict[str, tuple[Example, ...]],
    columns: Mapping[str, str],
    given: tuple[str, ...] | None,
    *,
    source: str,
    several: bool = False,
    learned: bool = True,
) -> tuple[str, ...]:
    """The label names in the order of their ids; makes names of the numbers in ``parts``.

    With ``several``, a row has any number of labels; each then stands once in it, in the order of the ids.
    ``source`` is what messages call the training rows. Those that are ``given`` know the rows' labels already
    (:func:`known_labels`). ``learned``: something has to be told apart in them.

    Raises:
        DataError: labels by row that the training rows don't have, a label listed twice, or nothing to tell apart.
    """
    role = "label" if "label" in columns else "tags"
    counted = _counted(given or ())
    for part, examples in parts.items():
        parts[part] = tuple(
            Example({**example.values, role: _named(example.values[role], counted)}, example.place)
            for example in examples
        )
    if given is not None:
        repeated = sorted(name for name, count in Counter(given).items() if count > 1)
        if repeated:
            raise DataError("data.labels", [f"{name!r} is listed twice" for name in repeated])
        labels = given
    else:
        labels = tuple(sorted({name for example in parts["train"] for name in _names(example, role)}, key=_order))
    known = set(labels)
    unknown = [
        (example, name)
        for examples in parts.values()
        for example in examples
        for name in dict.fromkeys(_names(example, role))
        if name not in known
    ]
    if unknown:
        problems = [
            f"{example.place}, {columns[role]}: unknown label {shown(name)}; the training rows have {some(labels)}"
            f"{'' if name in _NO_LABEL else nearest(name, labels)}"
            for example, name in unknown[:SHOWN_PROBLEMS]  # looking for the nearest of many labels takes its time
        ]
        none = [name for name in _NO_LABEL if any(name == found for _, found in unknown)]
        raise report("labels", problems, len(unknown), [_hint(name) for name in none])
    if several:
        if len(labels) == 1:
            raise DataError(
                "labels",
                [
                    f"{source}: {labels[0]} is the only label of {MULTI_LABEL}, expected at least two; a label that a "
                    "row has or hasn't makes two classes, whose column is named with data.columns.label"
                ],
            )
        _order_sets(parts, labels)
        sets = {tuple(example.values["label"]) for example in parts["train"]}
        if learned and len(sets) < 2:
            found = some(sets.pop()) or "no label at all"
            raise DataError("labels", [f"every training row has the same labels ({found}); expected different ones"])
        return labels
    used = {name for example in parts["train"] for name in _names(example, role)}
    if learned and len(used) < 2:
        raise DataError(
            "labels", [f"{source}: every training row has the label {some(sorted(used))}; expected at least two"]
        )
    return labels


def note_alike(labels: Sequence[str], note: Note) -> None:
    """Tell ``note`` of labels that differ in nothing but case, blanks or how a letter is encoded."""
    written: dict[str, list[str]] = {}
    for label in labels:
        key = "".join(unicodedata.normalize("NFKC", label).casefold().split())
        written.setdefault(key, []).append(label)
    alike = [" and ".join(map(repr, names)) for names in written.values() if len(names) > 1]
    if alike:
        note(f"labels that look alike are kept apart: {some(alike, 3)}; if they are one, mend the rows")


def note_several(labels: Sequence[str], note: Note) -> None:
    """Tell ``note`` of labels that look like several, since what stands between their separators are labels too."""
    known = set(labels)
    for sign in _BETWEEN_LABELS:
        for label in labels:
            parts = [part.strip() for part in label.split(sign)]
            if len(parts) > 1 and known.issuperset(parts):
                note(f"the label {shown(label)} looks like several; data.label_separator: {sign!r} reads them so")
                return


def note_counted(labels: Sequence[str], values: Iterable[Any], note: Note) -> None:
    """Tell ``note`` which names stand for the numbers that rows have as labels; those ``values`` are as read."""
    counted = _counted(labels)
    if counted and any(_named(value, counted) != _named(value, ()) for value in values if _is_label(value)):
        meant = some([f"{number} is {shown(name)}" for number, name in enumerate(counted)], 5)
        note(f"labels that are numbers count the listed ones from 0: {meant}")


def _is_label(value: Any) -> bool:
    return all(isinstance(item, (str, int)) for item in (value if isinstance(value, list) else [value]))


def note_no_label(labels: Sequence[str], counts: Mapping[str, int], note: Note) -> None:
    """Tell ``note`` of a label of few rows that may say that a row has none; ``counts`` are the training rows'."""
    rows = sum(counts.values())
    for name in _NO_LABEL:
        # A class of its own would be at least half as frequent as the others.
        if name in labels and counts[name] * len(labels) * 2 < rows:
            few = f"{counts[name]} of {rows} training rows have the label {name!r}"
            note(f"{few}, which is learned like others; {_hint(name)}")


def _hint(name: str) -> str:
    return f"if {name!r} says that a row has no label, set data.unlabelled to [{name!r}], which leaves such rows out"


def known_labels(labels: Sequence[str], check: Check) -> Check:
    """The check of a row's label, or of its labels: that of their form, then whether they are among ``labels``."""
    counted, known = _counted(labels), frozenset(labels)

    @functools.cache
    def unknown(name: str) -> str:  # looking for the nearest of many labels takes its time
        near = "; numbers count them from 0" if name.isdecimal() and counted else nearest(name, labels)
        return f"unknown label {shown(name)}; data.labels has {some(labels)}{near}"

    def problem(value: Any) -> str | None:
        if found := check(value):
            return found
        named = _named(value, counted)
        names = dict.fromkeys(named if isinstance(named, list) else [named])
        return "; ".join(unknown(name) for name in names if name not in known) or None

    return problem


def _counted(labels: Sequence[str]) -> Sequence[str]:
    """The labels that numbers count: none where they are numbers themselves (one to five stars), which are names."""
    return () if any(_NUMBER.fullmatch(label) for label in labels) else labels


def _named(value: Any, counted: Sequence[str]) -> str | list[str]:
    """A row's label or labels with names in place of numbers (texts, in CSV), which count ``counted`` from 0."""

    def name(value: str | int | float) -> str:
        if isinstance(value, bool):
            return str(value).lower()  # as JSON writes it
        text = str(int(value) if isinstance(value, float) else value)
        return counted[int(text)] if text.isdecimal() and int(text) < len(counted) else text

    return [name(item) for item in value] if isinstance(value, list) else name(value)


def _order_sets(parts: dict[str, tuple[Example, ...]], labels: tuple[str, ...]) -> None:
    """Put each row's labels in the order of their ids, each once."""
    ids = {label: index for index, label in enumerate(labels)}
    for part, examples in parts.items():
        ordered = (sorted(set(example.values["label"]), key=ids.__getitem__) for example in examples)
        parts[part] = tuple(
            Example({**example.values, "label": label}, example.place)
            for example, label in zip(examples, ordered, strict=True)
        )


def _names(example: Example, role: str) -> Sequence[str]:
    value = example.values[role]
    return value if isinstance(value, list) else [value]


def _order(name: str) -> tuple[int, int, str]:
    """Numbers by value, before names by alphabet: '10' follows '9'."""
    return (0, int(name), name) if _NUMBER.fullmatch(name) else (1, 0, name)
