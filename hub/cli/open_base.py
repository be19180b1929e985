"""Opening the base model that an adapter names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lorary.hub.errors import BaseNotFoundError, UsageError
from lorary.hub.pretrained_bases import bases_of
from lorary.hub.tables.catalogue import named_base

if TYPE_CHECKING:
    from lorary.adapters import Backbone
    from lorary.hub.checkpoint import Checkpoint
    from lorary.hub.registry import Registry


def open_backbone(
    checkpoint: Checkpoint,
    base: str | None,
    registry: Registry | None = None,
    *,
    slots: int = 1,
    **settings: str | None,
) -> Backbone:
    """A backbone for this adapter: on ``base``, or on the one that it names; ``settings`` are the backbone's.

    ``registry``: where bases that were pretrained here, and folders that adapters were trained on, are known from.

    Raises:
        UsageError: neither the caller nor the adapter names a base.
        BaseNotFoundError: it can't be found or isn't a model.
    """
    chosen = base or base_of(checkpoint)
    from lorary.adapters import Backbone

    with told_whose(base):
        return Backbone.from_pretrained(chosen, slots=slots, registry=registry, **settings)  # type: ignore[arg-type]


def find_tokenizer(checkpoint: Checkpoint, base: str | None, registry: Registry) -> Any:
    """The tokenizer of :func:`open_backbone`'s rows before the base is loaded, which may mean a long download.

    None where neither the adapter nor the base has one. Raises as :func:`open_backbone`, and CheckpointError where the
    adapter's own can't be read.
    """
    chosen = base or base_of(checkpoint)
    from lorary.adapters.text.tokenizers import serving_tokenizer

    with told_whose(base), bases_of(registry):
        return serving_tokenizer(checkpoint, chosen)


@contextmanager
def told_whose(base: str | None) -> Iterator[None]:
    """An error about a base that the user didn't name says where it was named."""
    try:
        yield
    except BaseNotFoundError as error:
        if base is not None:
            raise
        raise BaseNotFoundError(f"{error} (it is the base that the adapter names; --base says another)") from error


def base_of(checkpoint: Checkpoint) -> str:
    """The base that an adapter names.

    Raises:
        UsageError: it names none.
    """
    named = named_base(checkpoint)
    if named is None:
        raise UsageError(f"{checkpoint.source}: doesn't name its base; pass it with --base")
    return named
