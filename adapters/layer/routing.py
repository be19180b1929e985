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

from lorary.adapters.layer.packing import Packing
from lorary.adapters.layer.products import Products
from lorary.adapters.layer.step_cache import StepCache
from lorary.hub.errors import RoutingError

if TYPE_CHECKING:
    from lorary.adapters.adapter import Adapter
    from lorary.adapters.layer.slots import Arena


class Routing:
    """The adapters of one call's rows.

    Args:
        arena: the stacked weights to read, for as long as the call lasts.
        adapters: one per row, None for the bare backbone; a single one serves a batch of any size.
        slots: the slot of each row's adapter, 0 for the bare backbone.
        packing: where the rows are sequences that stand one after the other in one packed row, how long each is.
        kept: what a loop of packed rows keeps from one to the next.

    Raises:
        UsageError: sequences and lengths of different number.
    """

    def __init__(
        self,
        arena: Arena,
        adapters: Sequence[Adapter | None],
        slots: Sequence[int],
        packing: Packing | None = None,
        kept: StepCache | None = None,
    ) -> None:
        if packing is not None:
            packing.demand(len(slots))
        self.arena = arena
        self.home = arena.home
        self.packing = packing
        self.adapters = tuple(adapters)
        self.slots = tuple(slots)
        self.uniform = len(set(self.slots)) == 1
        self.closed = False
        self._distinct: dict[int, Adapter] = {
            slot: adapter for slot, adapter in zip(self.slots, self.adapters, strict=True) if slot and adapter
        }
        self._overriding = {slot: adapter for slot, adapter in self._distinct.items() if adapter.overrides}
        self._ranks: dict[str, int] = {}
        self._kept = kept
        self._products = self._lay_out() if self._distinct else None
        self._packed: dict[int, Products] = {}

    def _lay_out(self) -> Products:
        if self._kept is not None and self.uniform:
            return self._kept.alone(self.arena, self.slots[0], self._distinct[self.slots[0]])
        return Products(self.arena, self.slots, self._rank_at)

    def subset(self, rows: Sequence[int]) -> Routing:
        """The routing of some of the call's rows, in the order given."""
        return Routing(self.arena, [self.adapters[row] for row in rows], [self.slots[row] for row in rows])

    def without_updates(self) -> Routing:
        """The same adapters' heads over the bare backbone."""
        return Routing(self.arena, self.adapters, [0] * len(self.slots), self.packing)

    @property
    def runs_eagerly(self) -> bool:
        """Is it out of reach of compiled code, which knows rows, and no modules that were trained whole?"""
        return bool(self._overriding) or self.packing is not None

    def row_slots(self, rows: int) -> torch.Tensor:
        """The slot of each of a pass's ``rows``, a multiple of the call's: [rows], on the CPU.

        Raises:
            RoutingError: they aren't a multiple, in a call with several adapters.
        """
        if self.uniform:
            return torch.full((rows,), self.slots[0], device="cpu")
        if self._products is None:
            raise RoutingError("this call has ended")
        return self._products.groups(rows, torch.device("cpu")).row_slots

    def close(self) -> None:
        """The call is over: whoever still holds its routing gets an error, and what was laid out for it is freed."""
        self.closed = True
        self._products = None
        self._packed = {}

    def apply(self, path: str, layer: torch.nn.Module, x: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
        """``x`` [rows, ..., inputs] to [rows, ..., outputs]: the layer's output and each row's own update."""
        products = self._products
        if products is None:
            return layer(x, *args, **kwargs)
        if self.packing is not None and not self.uniform:
            return self._apply_packed(self.packing, path, layer, x, args, kwargs)
        trained = self._overriding
        out = self._override(path, layer, products, x, args, kwargs) if trained else layer(x, *args, **kwargs)
        return products.add(path, x, out)

    def _apply_packed(
        self, packing: Packing, path: str, layer: torch.nn.Module, x: torch.Tensor, args: Any, kwargs: Any
    ) -> torch.Tensor:
        """The same for a packed row, [1, tokens, ...] or [tokens, ...]: each token has its sequence's slot."""
        out = layer(x, *args, **kwargs)
        tokens = packing.flatten(x)
        count = tokens.shape[0]
        if count not in self._packed:
            self._packed[count] = self._pack(packing, count)
        products, flat = self._packed[count], out.reshape(-1, out.shape[-1])
        if self._overriding:
            flat = self._override_rows(path, flat, products, tokens)
        return products.add(path, tokens, flat).view(out.shape)

    def _pack(self, packing: Packing, count: int) -> Products:
        slots = packing.token_slots(self.slots, count)
        if self._kept is None:
            return Products(self.arena, slots, self._rank_at)
        return self._kept.packed(self.arena, self._distinct, slots)

    def _rank_at(self, path: str) -> int:
        if path not in self._ranks:
            self._ranks[path] = max(adapter.rank_at(path) for adapter in self._distinct.values())
        return self._ranks[path]

    def _override(
        self, path: str, layer: torch.nn.Module, products: Products, x: torch.Tensor, args: Any, kwargs: Any
    ) -> torch.Tensor:
        """The layer's output, but for rows whose adapter trained the whole module: theirs is the trained one's."""
        trained = {slot: found for slot, own in self._overriding.items() if (found := own.overrides.get(path))}
        if self.uniform and trained:
            return trained[self.slots[0]](x)
        return self._override_rows(path, layer(x, *args, **kwargs), products, x)

    def _override_rows(self, path: str, out: torch.Tensor, products: Products, x: torch.Tensor) -> torch.Tensor:
        """``out`` [rows, ...] with the rows of ``x`` whose adapter trained the module put through the trained one."""
        for slot, own in self._overriding.items():
            if (override := own.overrides.get(path)) is not None:
                chosen = products.rows_of(slot, x.shape[0], out.device)
                out = out.clone()
                out[chosen] = override(x[chosen]).to(out.dtype)
        return out


_ACTIVE: ContextVar[tuple[Routing | None, ...]] = ContextVar("lorary_routing", default=())


def active(home: int | None = None) -> Routing | None:
    """The routing of the call that is running, None outside of any.

    With ``home``, the number of a backbone, that of this backbone's innermost call: slots of another one, whose call
    this one's model runs in (as an assistant, or in a block of it), have nothing to say to its modules.

    Raises:
        RoutingError: the call that it belonged to has ended, so its slots may hold other adapters by now.
    """
    for routing in reversed(_ACTIVE.get()):
        if routing is None:
            return None
        if home is None or routing.home is None or routing.home == home:
            if routing.closed:
                raise RoutingError(
                    "this runs in a context that was copied inside a `using` block which has ended since; "
                    "enter a `using` block where the model is called"
                )
            return routing
    return None


@contextmanager
def routed(routing: Routing | None) -> Iterator[None]:
    """Run the block with this routing, or (None) with bare models; nested blocks override outer ones."""
    try:
        _ACTIVE.set((*_ACTIVE.get(), routing))
        yield
    finally:
        try:
            _take_back(routing)
        except BaseException:  # a Ctrl-C in the midst of it
            _take_back(routing)
            raise


def _take_back(routing: Routing | None) -> None:
    # Blocks of interleaved generators don't end in the order they began; each takes back only its own choice.
    entered = _ACTIVE.get()
    if routing in entered:
        place = len(entered) - 1 - entered[::-1].index(routing)
        _ACTIVE.set(entered[:place] + entered[place + 1 :])


_BATCHING = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


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
        if getattr(function, "__name__", "") in _BATCHING or kwargs.get("cache_implementation") == "paged":
            raise RoutingError(
                "transformers' continuous batching runs in a thread of its own, which knows nothing of this block's "
                "adapters; use Backbone.engine, or generate with another cache"
            )
        with routed(self._routing):
            return function(*args, **kwargs)
