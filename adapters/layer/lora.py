"""The layer: what the wrapped module returns, plus each row's own low-rank update (Hu et al. 2021).

The wrapped module is called as it is, so its quantization, its devices and its hooks stay its own affair.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lorary.adapters.base.modules import ModuleMap
from lorary.adapters.layer.routing import active
from lorary.adapters.layer.slots import SiteSpec, SiteView

_SUMS_ON: tuple[str, ...] = ("cuda",)  # for CPUs the compiler makes sums of such products by itself
_NUMBERS = itertools.count()
_HOMES: WeakKeyDictionary[torch.nn.Module, int] = WeakKeyDictionary()


def home_of(body: torch.nn.Module) -> int:
    """The number of a backbone's body, the same for all backbones around one body."""
    if body not in _HOMES:
        _HOMES[body] = next(_NUMBERS)
    return _HOMES[body]


class TracedRows:
    """The slot of each row of a compiled step: [rows], or [1] where all have the same; None while none runs."""

    def __init__(self) -> None:
        self.slots: torch.Tensor | None = None


@dataclass(frozen=True)
class TracedSite:
    """What compiled code reads in a layer: the rows' slots, and the site's part of the arena.

    ``view`` is None where no slot has anything, as in a module that an adapter trained whole.
    """

    rows: TracedRows
    view: SiteView | None

    def add(self, slots: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """``out``, the wrapped module's output for ``x``, with each row's product added; bare rows add zero."""
        if self.view is None:
            return out
        # torch.compile takes a size of 1 for another graph, and there all rows share one product.
        view, rows = self.view, slots if len(slots) == 1 else slots.repeat_interleave(x.shape[0] // len(slots))
        if view.embedding:
            hidden = view.a[rows.view(-1, *[1] * (x.ndim - 1)), x].view(len(rows), -1, view.a.shape[-1])
            hidden = hidden.to(view.computes)
        else:
            x = x.to(view.computes).view(len(rows), -1, x.shape[-1])
            hidden = _times(x, view.a[rows].to(view.computes))
        delta = _times(hidden, view.b[rows].to(view.computes))
        if view.gain is not None:
            delta = delta + (out.view(delta.shape) * view.gain[rows].unsqueeze(1))
        if view.bias is not None:
            delta = delta + view.bias[rows].unsqueeze(1)
        return out + delta.view(out.shape).to(out.dtype)


def _times(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """``x`` [rows, vectors, n] times ``factors`` [rows, n, m].

    For a batched product of factors that a row's slot names, the compiler copies them together first, in every step.
    For a sum it reads them where they are. With a vector a row, reading is what takes the time.
    """
    if x.shape[1] == 1 and x.device.type in _SUMS_ON:
        return (x.mT * factors).sum(1, keepdim=True)
    return torch.bmm(x, factors)


class LoraLayer(torch.nn.Module):
    """Stands in a backbone where a linear-like module stood.

    ``path`` is that module's path in the backbone, ``home`` the backbone's number.
    """

    made = 0  # in this process, by which compiled code learns of new ones

    def __init__(self, base_layer: torch.nn.Module, path: str, home: int) -> None:
        super().__init__()
        LoraLayer.made += 1
        self.base_layer = base_layer
        self.path = path
        self.home = home
        self.traced: TracedSite | None = None

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``x`` [rows, ..., inputs] to [rows, ..., outputs]."""
        if torch.compiler.is_compiling():
            return self._trace(x, args, kwargs)
        routing = active(self.home)
        base_layer = self._modules["base_layer"]  # as an attribute it would be looked up through both __getattr__
        assert base_layer is not None
        if routing is None:
            return base_layer(x, *args, **kwargs)
        return routing.apply(self.path, base_layer, x, args, kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped module's: a backbone's model is saved under its own names, as the bare one that it is."""
        return self.base_layer.state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}base_layer.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _trace(self, x: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
        """What compiled code does here; where the backbone itself isn't compiled, it steps out of that code."""
        if self.traced is None or self.traced.rows.slots is None:
            return _step_out(self, x, args, kwargs)
        out = self.base_layer(x, *args, **kwargs)
        return self.traced.add(self.traced.rows.slots, x, out)

    def __getattr__(self, name: str) -> Any:
        # Models look into their linears (T5 asks for `wo.weight.dtype`); they find the wrapped module's attributes.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)


@torch.compiler.disable
def _step_out(layer: LoraLayer, x: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
    return layer.forward(x, *args, **kwargs)


def wrap(model: torch.nn.Module, path: str, home: int) -> None:
    """Put a :class:`LoraLayer` around the module at ``path``, unless there is one already; it is ``home``'s then."""
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    module = getattr(parent, name)
    if isinstance(module, LoraLayer):
        module.home = home  # a copy of another backbone's model has layers with that one's number
    else:
        layer = LoraLayer(module, path, home)
        layer.train(module.training)
        setattr(parent, name, layer)


def unwrap(model: torch.nn.Module) -> None:
    """Put every module that a :class:`LoraLayer` stands around back into its place."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.base_layer)


class SiteOpener:
    """Puts the layer around modules that an adapter reaches for the first time, and says what the arena needs there.

    Not a method of the backbone: what adapters are kept in would then hold the backbone, and keep it from ending.
    """

    def __init__(self, model: torch.nn.Module, modules: ModuleMap, device: torch.device, home: int) -> None:
        self._model, self._modules, self._device, self._home = model, modules, device, home

    def __call__(self, path: str) -> SiteSpec:
        """The site at ``path``, a linear module's or an embedding's."""
        wrap(self._model, path, self._home)
        layer = self._model.get_submodule(path)
        device = next((parameter.device for parameter in layer.parameters()), self._device)
        shape = self._modules.site(path)
        assert shape is not None
        return SiteSpec(shape, device)
