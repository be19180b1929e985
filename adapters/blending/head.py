"""Whose head a blend answers through, and with it whose labels, prompt, preprocessing and tokenizer it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lorary.adapters.adapter import task_of
from lorary.adapters.blending.parts import Part
from lorary.hub.errors import BlendError, UsageError
from lorary.hub.manifest import SINGLE_LABEL

AVERAGE = "average"
"""What ``head`` says for the weighted mean of heads with the same labels."""


def choose_owner(parts: Sequence[Part], head: str | None) -> Part:
    """The adapter whose head, labels, task, prompt, preprocessing and tokenizer the blend takes over.

    It has to be named where the adapters differ in them, unless only one carries a head.

    Raises:
        UsageError: ``head`` names none of the adapters.
        BlendError: they differ and ``head`` doesn't say whose to take, or heads can't be averaged.
    """
    by_name = {part.name: part for part in parts}
    if head in by_name:
        return by_name[head]
    if head not in (None, AVERAGE):
        raise UsageError(
            f"head={head!r} is none of the blended adapters; expected {' or '.join(by_name)}, or {AVERAGE}"
        )
    first = next((part for part in parts if part.checkpoint.manifest), parts[0])
    if head == AVERAGE:
        _demand_averageable(parts)
        return first
    with_head = [part for part in parts if part.contents.head]
    if len(with_head) == 1:
        return with_head[0]
    for part in parts:
        if differing := _differences(first, part):
            average = f", or head={AVERAGE!r}" if set(differing) == {"head"} else ""
            raise BlendError(
                f"{first.name} and {part.name} differ in {', '.join(differing)}; say whose the blend takes over: "
                f"head={first.name!r} or head={part.name!r}{average} (--head NAME on the command line)"
            )
    return first


def averages(parts: Sequence[Part], head: str | None) -> bool:
    """Is the mean of heads asked for? Not where one of the adapters is called so."""
    return head == AVERAGE and all(part.name != AVERAGE for part in parts)


def head_of(parts: Sequence[Part], owner: Part, head: str | None) -> Mapping[str, torch.Tensor]:
    """The head's parameters: the owner's, or for :data:`AVERAGE` the mean of all by weight."""
    if not averages(parts, head):
        return owner.contents.head
    total = sum(part.weight for part in parts)
    return {
        name: torch.stack([part.weight / total * part.contents.head[name].float() for part in parts]).sum(dim=0)
        for name in owner.contents.head
    }


def _demand_averageable(parts: Sequence[Part]) -> None:
    first = parts[0]
    for part in parts:
        if not part.contents.head:
            raise BlendError(f"head={AVERAGE!r}: {part.name} carries no head; name the adapter whose head to take")
        if part.weight < 0:
            raise BlendError(f"head={AVERAGE!r} needs weights above 0, and that of {part.name} is {part.weight:g}")
        if (_answers(part), _shapes(part)) != (_answers(first), _shapes(first)):
            raise BlendError(
                f"head={AVERAGE!r} needs the same task, and labels that are read alike, everywhere; {first.name} has "
                f"{_answers(first)}, {part.name} has {_answers(part)}. Name the adapter whose head to take"
            )


def _answers(part: Part) -> str:
    """The task, the labels and how a head's numbers are read, for comparing and for showing."""
    manifest = part.checkpoint.manifest
    labels = manifest.labels if manifest else None
    read = [", ".join(labels) if labels else "labels without names"]
    if manifest is not None and (manifest.problem_type or len(labels or ()) > 1):
        read.append(manifest.problem_type or SINGLE_LABEL)  # as transformers takes a head that doesn't say
    if manifest is not None and manifest.answering is not None:
        read.append("'no answer' competes" if manifest.answering.impossible else "every question answered")
    return f"{task_of(part.checkpoint)} ({'; '.join(read)})"


def _shapes(part: Part) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in part.contents.head.items()}


def _differences(one: Part, other: Part) -> list[str]:
    """In what two adapters ask or answer differently; one without a manifest doesn't say how its rows are put."""
    differing = [] if task_of(one.checkpoint) == task_of(other.checkpoint) else ["task"]
    ours, theirs = one.checkpoint.manifest, other.checkpoint.manifest
    if ours is not None and theirs is not None:
        fields = ("labels", "problem_type", "preprocessing", "prompt", "pooling", "answering")
        differing += [field for field in fields if getattr(ours, field) != getattr(theirs, field)]
    if one.tokenizer != other.tokenizer:
        differing.append("tokenizer")
    heads = one.contents.head, other.contents.head
    if _shapes(one) != _shapes(other) or any(not torch.equal(heads[0][name], heads[1][name]) for name in heads[0]):
        differing.append("head")
    return differing
