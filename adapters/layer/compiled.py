"""torch.compile and CUDA graphs that survive swaps: compiled code reads the arena, and each row's slot from a tensor.

The choice of adapters is read outside of the compiled code and written into that tensor, so another choice, a swap, a
load or an eviction is other data at the same addresses, and nothing is compiled again. Only what changes shapes is:
more rows, an adapter of larger rank or on modules that none reached before; and calls with one adapter and calls with
several are two shapes. Steps are serialised one by one, since they share the tensor; generations are not.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from lorary.adapters.base.loading import is_encoder
from lorary.adapters.layer.lora import LoraLayer, TracedRows, TracedSite
from lorary.adapters.layer.routing import Routing, active
from lorary.adapters.layer.slots import Arena
from lorary.hub.errors import UsageError

_EAGERLY: ContextVar[bool] = ContextVar("lorary_eagerly", default=False)
_GRAPHS = "triton.cudagraphs"
_GRAPH_MODES = {"reduce-overhead": None, "max-autotune": "max-autotune-no-cudagraphs"}
_ROWS_FROM = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")


@contextmanager
def eagerly() -> Iterator[None]:
    """Within the block nothing is compiled: a probe's shapes are nobody else's."""
    token = _EAGERLY.set(True)
    try:
        yield
    finally:
        _EAGERLY.reset(token)


class CompiledForward:
    """Takes the place of a body's ``forward``.

    Args:
        body: the shared body.
        arena: gives the stacked weights of the moment.
        options: those of ``torch.compile``.
    """

    def __init__(self, body: torch.nn.Module, arena: Callable[[], Arena], options: dict[str, Any]) -> None:
        self.eager = body.forward
        self._body = (body,)
        self._arena = arena
        self._compiled = torch.compile(body.forward, **options)
        self._graphs = records_graphs(options)
        self._ungraphed = torch.compile(body.forward, **without_graphs(options)) if self._graphs else self._compiled
        self._device = next(body.parameters()).device
        self._slots: dict[int, torch.Tensor] = {}
        self._rows = TracedRows()
        self._pointed_at: tuple[Arena | None, int] = None, 0
        self._lock = threading.Lock()
        self.__signature__ = inspect.signature(self.eager)  # generate asks a forward which arguments it takes

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a step: compiled, but for packed rows and adapters that trained whole modules, which run as they are."""
        arena = self._arena()
        routing = active(arena.home)
        rows = next((len(kwargs[name]) for name in _ROWS_FROM if kwargs.get(name) is not None), None)
        if rows is None:
            rows = len(args[0]) if args else 0
        if not rows or _EAGERLY.get() or (routing is not None and routing.runs_eagerly):
            return self.eager(*args, **kwargs)
        with self._lock:
            self._point_at(routing.arena if routing is not None else arena)
            self._rows.slots = self._fill(routing, rows)
            try:
                if not self._graphs or self._makes_cache(kwargs):
                    return self._ungraphed(*args, **kwargs)
                torch.compiler.cudagraph_mark_step_begin()
                return _kept(self._compiled(*args, **kwargs))
            finally:
                self._rows.slots = None

    def _makes_cache(self, kwargs: Mapping[str, Any]) -> bool:
        """Does this call return keys and values that the next one is given? They would lie in the graph's memory.

        Those of a static cache do only where it is still to be made; of one that grows each step is a shape of its own.
        """
        cache = kwargs.get("past_key_values")
        if cache is not None:
            return not (getattr(cache, "is_compileable", False) and cache.is_initialized)
        config = self._body[0].config
        asked = kwargs.get("use_cache")
        return not is_encoder(config) and bool(getattr(config, "use_cache", False) if asked is None else asked)

    def _fill(self, routing: Routing | None, rows: int) -> torch.Tensor:
        """The tensor for this number of rows, always the same one, with this call's slots in it."""
        if routing is None or routing.uniform:
            rows = 1
        if rows not in self._slots:
            self._slots[rows] = torch.zeros(rows, dtype=torch.long, device=self._device)
        slots = self._slots[rows]
        return slots.zero_() if routing is None else slots.copy_(routing.row_slots(rows))

    def _point_at(self, arena: Arena) -> None:
        """Let every layer read this arena."""
        made = LoraLayer.made
        if self._pointed_at[0] is arena and self._pointed_at[1] == made:
            return
        for module in self._body[0].modules():
            if isinstance(module, LoraLayer):
                view = arena.views.get(module.path)
                if module.traced is None or module.traced.rows is not self._rows or module.traced.view is not view:
                    module.traced = TracedSite(self._rows, view)
        self._pointed_at = arena, made


def _kept(output: Any) -> Any:
    """What a graph returned, in memory that its next replay doesn't write into; a cache is its caller's already."""
    if isinstance(output, torch.Tensor):
        return output.clone()
    if isinstance(output, tuple):
        return tuple(map(_kept, output))
    if isinstance(output, Mapping):
        return type(output)(**{name: _kept(value) for name, value in output.items()})
    return output


def compile_body(body: torch.nn.Module, arena: Callable[[], Arena], options: dict[str, Any]) -> None:
    """Compile the forward of ``body``, again with other options if it was compiled before.

    Raises:
        UsageError: the body is spread over several devices.
    """
    if len({parameter.device for parameter in body.parameters()}) > 1:
        raise UsageError("compile needs the whole backbone on one device; open it without device_map")
    if isinstance(body.forward, CompiledForward):
        body.forward = body.forward.eager
    body.forward = CompiledForward(body, arena, options)


def records_graphs(options: Mapping[str, Any]) -> bool:
    """Do these options of ``torch.compile`` ask for CUDA graphs?"""
    return options.get("mode") in _GRAPH_MODES or bool((options.get("options") or {}).get(_GRAPHS))


def without_graphs(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same options, but for CUDA graphs."""
    mode = _GRAPH_MODES.get(str(options.get("mode")), options.get("mode"))
    settings = {name: value for name, value in (options.get("options") or {}).items() if name != _GRAPHS}
    changed = {**options, "mode": mode, "options": settings or None}
    return {name: value for name, value in changed.items() if value is not None}
