"""Which adapters run through PEFT, by name, and how a call's rows are shared out between them and the slots."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from lorary.adapters.adapter import Adapter
from lorary.adapters.through_peft.adapter import PeftAdapter
from lorary.adapters.through_peft.own_pass import demand_own_model
from lorary.hub.errors import UnsupportedAdapterError, UsageError


class PeftBook:
    """The books of the adapters that run through PEFT; a call keeps the ones that it began with.

    Args:
        body: the backbone's; once there is such an adapter, it refuses calls that belong to one.
    """

    def __init__(self, body: torch.nn.Module) -> None:
        self._body = body
        self._lock = threading.Lock()
        self._named: dict[str, PeftAdapter] = {}
        self._guard: RemovableHandle | None = None

    def names(self) -> list[str]:
        """The names, in the order they were loaded."""
        with self._lock:
            return list(self._named)

    def find(self, name: str | None) -> PeftAdapter | None:
        """The adapter under ``name``, None where there is none."""
        with self._lock:
            return None if name is None else self._named.get(name)

    def refuse(self, name: str | None, who: str) -> None:
        """Refuse a name whose adapter runs through PEFT; ``who`` needs those in slots.

        Raises:
            UnsupportedAdapterError: it does.
        """
        if self.find(name) is not None:
            raise UnsupportedAdapterError(
                f"{name!r} runs through PEFT, in a model of its own, and {who} takes adapters in slots; "
                "predict, generate and `using` serve it"
            )

    def publish(self, adapter: PeftAdapter) -> None:
        """Make ``adapter`` the one that its name stands for."""
        with self._lock:
            if self._guard is None:
                self._guard = self._body.register_forward_pre_hook(demand_own_model)
            self._named[adapter.name] = adapter

    def release(self) -> None:
        """Take the guard off the body."""
        with self._lock:
            if self._guard is not None:
                self._guard.remove()
                self._guard = None

    def withdraw(self, name: str) -> bool:
        """Forget the adapter under ``name``; False where there is none."""
        with self._lock:
            return self._named.pop(name, None) is not None

    @property
    def nbytes(self) -> int:
        """What the adapters take besides the backbone's memory."""
        with self._lock:
            return sum(adapter.nbytes for adapter in self._named.values())


def only_one(adapters: Sequence[Any]) -> PeftAdapter | None:
    """The adapter that runs through PEFT and serves a whole `using` block, None where none of these runs so.

    Raises:
        UsageError: it was asked to share a batch with others.
    """
    own = [adapter for adapter in adapters if isinstance(adapter, PeftAdapter)]
    if own and any(adapter is not own[0] for adapter in adapters):
        raise UsageError(
            f"{own[0].name!r} runs through PEFT and can't share a batch of a `using` block with other adapters; give "
            "it a block of its own, or call predict or generate, which share the rows out"
        )
    return own[0] if own else None


def on_slots(adapters: Sequence[Adapter | PeftAdapter | None]) -> list[Adapter | None]:
    """The adapters of a call, none of which runs through PEFT."""
    return [adapter for adapter in adapters if not isinstance(adapter, PeftAdapter)]


def share_out(
    adapters: Sequence[Adapter | PeftAdapter | None],
    slotted: Callable[[list[int], list[Adapter | None]], list[Any]],
    through_peft: Callable[[list[int], PeftAdapter], list[Any]],
) -> list[Any]:
    """Rows of the slots in one pass, those of each adapter that runs through PEFT in a pass of their own.

    Each function is given the places of its rows and returns as many results for each (one, or a row's several
    sequences one after the other). Returns the results in the order of the rows.
    """
    groups: dict[PeftAdapter | None, list[int]] = {}
    for row, adapter in enumerate(adapters):
        groups.setdefault(adapter if isinstance(adapter, PeftAdapter) else None, []).append(row)
    found: dict[int, list[Any]] = {}
    for own, rows in groups.items():
        made = through_peft(rows, own) if own is not None else slotted(rows, on_slots([adapters[row] for row in rows]))
        each = len(made) // len(rows)
        found |= {row: made[place * each : (place + 1) * each] for place, row in enumerate(rows)}
    return [result for row in range(len(adapters)) for result in found[row]]
