"""The adapters that go into a blend: what they are called, what they weigh, what they hold and where they are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorary.adapters.adapter import Adapter
from lorary.adapters.arguments import is_number
from lorary.adapters.blending.contents import Contents, read_contents
from lorary.adapters.text.tokenizers import told_by_tokenizer
from lorary.hub.checkpoint import Checkpoint, read_again
from lorary.hub.errors import ChangedFilesError, InvalidReferenceError, UnknownReferenceError, UsageError
from lorary.hub.reference import HubReference, parse_reference
from lorary.hub.registry import Registry
from lorary.hub.values import Version


@dataclass(frozen=True)
class Part:
    """One adapter of a blend.

    ``name`` is what the caller calls it, ``title`` what it is called by itself. ``reference`` is where others find it:
    its version in the catalogue or its repository on the Hub, None for a folder. ``version`` is that version.
    ``tokenizer`` is what its own tokenizer makes of texts, None where they are read with the base's.
    """

    name: str
    title: str
    weight: float
    checkpoint: Checkpoint
    contents: Contents
    reference: str | None = None
    version: Version | None = None
    tokenizer: tuple[Any, ...] | None = None

    @property
    def domain(self) -> str | None:
        """Its subject matter, where the catalogue or its manifest says it."""
        if self.version is not None:
            return self.version.domain
        return self.checkpoint.manifest.domain if self.checkpoint.manifest else None


def read_part(name: str, weight: float, title: str, checkpoint: Checkpoint, registry: Registry) -> Part:
    """One adapter of a blend (:class:`Part` says what the arguments are).

    Raises:
        UsageError: a weight that isn't a number other than 0.
        CheckpointError: it can't be read, or not as something to be combined (:func:`read_contents`).
    """
    if not is_number(weight) or not math.isfinite(weight) or weight == 0:
        raise UsageError(f"the weight of {name} is {weight!r}; expected a number other than 0, or leave {name} out")
    reference, version = _known(checkpoint, registry)
    contents, tokenizer = read_contents(checkpoint), told_by_tokenizer(checkpoint)
    return Part(name, title, float(weight), checkpoint, contents, reference, version, tokenizer)


def read_loaded(adapters: Mapping[str, Adapter], weights: Mapping[str, float], registry: Registry) -> list[Part]:
    """The parts of a blend of loaded adapters, by name.

    Raises:
        ChangedFilesError: the files that one was loaded from are others by now.
        CheckpointError: they are gone; and as :func:`read_part`.
    """
    parts = [read_part(name, weights[name], name, _unchanged(adapter), registry) for name, adapter in adapters.items()]
    own = {name for name, adapter in adapters.items() if adapter.own_tokenizer is not None}
    return [part if part.name in own else replace(part, tokenizer=None) for part in parts]


def _unchanged(adapter: Adapter) -> Checkpoint:
    """An adapter's checkpoint, its files being still those that were loaded."""
    again = read_again(adapter.checkpoint)
    if again.digest != adapter.digest:
        raise ChangedFilesError(
            f"{adapter.source}: its files have changed since they were loaded (digest {adapter.digest[:12]} then, "
            f"{again.digest[:12]} now); put the files back, or load the name again"
        )
    return again


def _known(checkpoint: Checkpoint, registry: Registry) -> tuple[str | None, Version | None]:
    """Where others find a checkpoint, and the version in the catalogue that it was read from."""
    if Path(checkpoint.source).is_dir():  # a relative one reads like a name or a repository
        return None, None
    try:
        parsed = parse_reference(checkpoint.source)
        if isinstance(parsed, HubReference):
            return str(parsed), None
        version = registry.resolve(checkpoint.source)
    except (InvalidReferenceError, UnknownReferenceError):  # removed since, or handed over in memory under any name
        return None, None
    return (version.reference, version) if version.digest == checkpoint.digest else (None, None)
