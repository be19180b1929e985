"""How tags mark entities, and sequences that break their own scheme.

Ramshaw and Marcus (1995) open every entity with I- and use B- only between neighbours of one type (IOB1); most data
since CoNLL-2002 open every entity with B- (IOB2, often called BIO); IOBES and BILOU also mark an entity's last word and
entities of one word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from lorary.training.data.examples import Example, Note
from lorary.training.data.files.source import report
from lorary.training.recipe import Recipe

_ENTITY = re.compile(r"O|[BIESLU]-.+", re.DOTALL)
_AS_IOBES = {"L": "E", "U": "S"}


def mark_entities(labels: Sequence[str]) -> bool:
    """Do the tags mark entities (O, and B-x and its kin), rather than stand for words one by one?"""
    return all(_ENTITY.fullmatch(label) for label in labels) and any(label != "O" for label in labels)


def as_iobes(tags: Sequence[str]) -> list[str]:
    """The tags with BILOU's L- and U- under the names that IOBES and seqeval have for them."""
    return [_AS_IOBES[tag[0]] + tag[1:] if tag[:2] in ("L-", "U-") else tag for tag in tags]


def find_scheme(sentences: Sequence[Sequence[str]]) -> str:
    """IOB1, IOB2, IOBES or BILOU, whichever the tags of these sentences are in."""
    kinds = {tag[0] for tags in sentences for tag in tags if tag != "O"}
    if kinds & {"L", "U"}:
        return "BILOU"
    if kinds & {"E", "S"}:
        return "IOBES"
    steps = [step for tags in sentences for step in pairwise(("O", *tags))]
    opened = any(tag[0] == "I" and not _same(before, tag) for before, tag in steps)
    needed = all(_same(before, tag) for before, tag in steps if tag[0] == "B")
    return "IOB1" if opened and needed else "IOB2"


def is_broken(tags: Sequence[str], scheme: str) -> bool:
    """Does a sentence's tags hold a tag that its scheme doesn't allow there?

    IOB2: an I- that goes on from nothing. IOBES and BILOU: an entity that isn't closed, or closed without being opened.
    IOB1 allows any order.
    """
    if scheme == "IOB1":
        return False
    if scheme == "IOB2":
        return any(tag[0] == "I" and not _same(before, tag) for before, tag in pairwise(("O", *tags)))
    return any(
        (before[0] in "BI") != (tag[0] in "IE") or (before[0] in "BI" and before[2:] != tag[2:])
        for before, tag in pairwise(("O", *as_iobes(tags), "O"))
    )


def _same(before: str, tag: str) -> bool:
    """Are these two neighbours parts of entities of one type?"""
    return before != "O" and before[2:] == tag[2:]


def check_tags(
    recipe: Recipe, parts: Mapping[str, tuple[Example, ...]], labels: Sequence[str], note: Note
) -> str | None:
    """The scheme of the training rows' tags, where they mark entities; broken sentences are counted or refused.

    Raises:
        DataError: with ``data.broken_tags: error``, each broken sentence by file and row.
    """
    if not mark_entities(labels):
        numbers = "; if they are numbers of such tags, name these in order with data.labels"
        note(
            "the tags don't mark entities (O, B-x, I-x): scored word by word"
            + (numbers if all(label.isdecimal() for label in labels) else "")
        )
        return None
    scheme = find_scheme([example.values["tags"] for example in parts["train"]])
    problems = []
    for examples in parts.values():
        broken = [example for example in examples if is_broken(example.values["tags"], scheme)]
        problems += [f"{example.place}: {_BROKEN[scheme]}" for example in broken]
        if broken and recipe.data.broken_tags != "error":
            note(
                f"{len(broken)} of {len(examples)} sentences have {_BROKEN[scheme]} (first: {broken[0].place}); "
                "such a tag counts as the beginning of an entity (data.broken_tags)"
            )
    if problems and recipe.data.broken_tags == "error":
        raise report("tags", problems)
    return scheme


_BROKEN = {
    "IOB2": "an I- tag without its B- before it",
    "IOBES": "an entity that isn't opened with B- and closed with E-",
    "BILOU": "an entity that isn't opened with B- and closed with L-",
}
