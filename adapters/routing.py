"""Which row of a batch uses which adapter: decided once per call, read by every adapted layer.

The choice travels in a context variable, so it belongs to the call that made it: threads and tasks that share one
backbone can't overwrite each other's.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lorary.hub.errors import RoutingError

if TYPE_CHECKING:
    from lorary.adapters.adapter import Adapter
    from lorary.adapters.slots import Arena


class Routing:
    """The adapters of one call's rows.

    Args:
        arena: the stacked weights to read, for as long as the call lasts.
        adapters: one per row, None for the bare backbone; a single one serves a batch of any size.
        slots: the slot of each row's adapter, 0 for the bare backbone.
    """

    def __init__(self, arena: Arena, adapters: Sequence[Adapter | None], slots: Sequence[int]) -> None:
        self.arena = arena
        self.adapters = tuple(adapters)
        self.slots = tuple(slots)
        self.uniform = len(set(self.slots)) == 1
        self.closed = False
        self._distinct: dict[int, Adapter] = {
            slot: adapter for slot, adapter in zip(self.slots, self.adapters, strict=True) if slot and adapter
        }
        self._row_slots: dict[tuple[int, torch.device], torch.Tensor] = {}

    def subset(self, rows: Sequence[int]) -> Routing:
        """The routing of some of the call's rows, in the order given."""
        return Routing(self.arena, [self.adapters[row] for row in rows], [self.slots[row] for row in rows])

    def without_updates(self) -> Routing:
        """The same adapters' heads over the bare backbone."""
        return Routing(self.arena, self.adapters, [0] * len(self.slots))

    def apply(self, path: str, layer: torch.nn.Module, x: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
        """``x`` [rows, ..., inputs] to [rows, ..., outputs]: the layer's output and each row's own update."""
        if self.uniform:
            adapter = self._distinct.get(self.slots[0])
            if adapter is None:
                return layer(x, *args, **kwargs)
            override = adapter.overrides.get(path)
            out = layer(x, *args, **kwargs) if override is None else override(x)
            rank = adapter.rank_at(path)
            return out if rank == 0 else self._add_one(path, x, out, self.slots[0], rank)
        out = layer(x, *args, **kwargs)
        out = self._override_rows(path, x, out)
        rank = max((adapter.rank_at(path) for adapter in self._distinct.values()), default=0)
        return out if rank == 0 else self._add_mixed(path, x, out, rank)

    def _add_one(self, path: str, x: torch.Tensor, out: torch.Tensor, slot: int, rank: int) -> torch.Tensor:
        """The dense path: one adapter for all rows."""
        view = self.arena.views[path]
        hidden = torch.nn.functional.linear(x.to(device=view.a.device, dtype=view.a.dtype), view.a[slot, :rank])
        delta = torch.matmul(hidden, view.b[slot, :rank])
        if view.bias is not None:
            delta = delta + view.bias[slot]
        return out + delta.to(device=out.device, dtype=out.dtype)

    def _add_mixed(self, path: str, x: torch.Tensor, out: torch.Tensor, rank: int) -> torch.Tensor:
        """Each row its own factors: two batched products. Rows of slot 0 add zero."""
        view = self.arena.views[path]
        rows = self.row_slots(x.shape[0], view.a.device)
        flat = x.to(device=view.a.device, dtype=view.a.dtype).reshape(x.shape[0], -1, x.shape[-1])
        hidden = torch.bmm(flat, view.a[:, :rank].index_select(0, rows).transpose(1, 2))
        delta = torch.bmm(hidden, view.b[:, :rank].index_select(0, rows))
        if view.bias is not None:
            delta = delta + view.bias.index_select(0, rows).unsqueeze(1)
        return out + delta.reshape(out.shape).to(device=out.device, dtype=out.dtype)

    def _override_rows(self, path: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Replace the output of rows whose adapter trained the whole module."""
        for slot, adapter in self._distinct.items():
            override = adapter.overrides.get(path)
            if override is not None:
                chosen = self.row_slots(x.shape[0], out.device) == slot
                out = out.clone()
                out[chosen] = override(x[chosen]).to(out.dtype)
        return out

    def row_slots(self, rows: int, device: torch.device) -> torch.Tensor:
        """The slot of each of a layer's ``rows``: [rows], on ``device``.

        Beam search and several answers per prompt repeat each row; layers that see flattened tokens see each row's
        tokens one after the other. In both, a layer's rows are a multiple of the call's, in the same order.

        Raises:
            RoutingError: the layer's rows aren't such a multiple.
        """
        key = (rows, device)
        if key not in self._row_slots:
            repeats, rest = divmod(rows, len(self.slots))
            if rest or repeats == 0:
                raise RoutingError(
                    f"a layer sees {rows} rows in a call of {len(self.slots)} with several adapters, so the rows can't "
                    "be told apart; pass the rows of one adapter at a time"
                )
            slots = torch.tensor(self.slots, dtype=torch.long, device=device)
            self._row_slots[key] = slots.repeat_interleave(repeats)
        return self._row_slots[key]


_ACTIVE: ContextVar[Routing | None] = ContextVar("lorary_routing", default=None)


def active() -> Routing | None:
    """The routing of the call that is running, None outside of any.

    Raises:
        RoutingError: the call that it belonged to has ended, so its slots may hold other adapters by now.
    """
    routing = _ACTIVE.get()
    if routing is not None and routing.closed:
        raise RoutingError(
            "this runs in a context that was copied inside a `using` block which has ended since; "
            "enter a `using` block where the model is called"
        )
    return routing


@contextmanager
def routed(routing: Routing | None) -> Iterator[None]:
    """Run the block with this routing; nested blocks override outer ones."""
    outer = _ACTIVE.get()
    _ACTIVE.set(routing)
    try:
        yield
    finally:
        # Blocks of interleaved generators don't end in the order they began; each takes back only its own choice.
        if _ACTIVE.get() is routing:
            _ACTIVE.set(None if outer is not None and outer.closed else outer)


class RoutedModel:
    """A model whose every call uses one routing, in whatever thread it is made, until its block has ended."""

    def __init__(self, model: Any, routing: Routing) -> None:
        self._model = model
        self._routing = routing

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with its routing."""
        return self._with_routing(self._model, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._model, name)
        return partial(self._with_routing, attribute) if inspect.ismethod(attribute) else attribute

    def _with_routing(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self._routing.closed:
            raise RoutingError("the `using` block that gave this model has ended; enter another one")
        with routed(self._routing):
            return function(*args, **kwargs)
