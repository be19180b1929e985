"""The end of a backbone's pass, run on what the bare backbone made of its beginning.

To see that an adapter reaches the logits, not all of it has to run: in the pass here it acts at one module, the last
one of its own, and whatever the bare backbone computes before that module is replayed from one pass that was recorded.
If the logits then differ from the bare ones, the adapter takes effect. If they don't, nothing is shown, and the whole
adapter has to run.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorary.adapters.layer.compiled import CompiledForward
from lorary.adapters.layer.routing import Routing, routed
from lorary.adapters.layer.slots import Layout
from lorary.adapters.running.inference import Inference, tensors_of

_ROUNDING = 1e-2  # between products of an output layer's first rows and of all of them, in bfloat16
_VOCABULARY = 256  # logits that are looked at: an output layer's whole product would cost more than all the rest


class _Recording(torch.nn.Module):
    """Stands where a block stood, and keeps what the block returned."""

    def __init__(self, block: torch.nn.Module, outputs: dict[str, Any], path: str) -> None:
        super().__init__()
        self._block, self._outputs, self._path = (block,), outputs, path

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._outputs[self._path] = output = self._block[0](*args, **kwargs)
        return output

    def __getattr__(self, name: str) -> Any:
        return _own_or(self, name)


class _Replaying(torch.nn.Module):
    """Stands where a module stood, and returns what that returned."""

    def __init__(self, output: Any, module: torch.nn.Module) -> None:
        super().__init__()
        self._output, self._block = output, (module,)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._output

    def __getattr__(self, name: str) -> Any:
        return _own_or(self, name)


def _own_or(module: torch.nn.Module, name: str) -> Any:
    """An attribute of a stand-in, or of the module in whose place it is: models look into their blocks."""
    try:
        return torch.nn.Module.__getattr__(module, name)
    except AttributeError:
        return getattr(module.__dict__["_block"][0], name)


def _first_rows(linear: torch.nn.Linear) -> torch.nn.Linear:
    """An output layer of the first logits alone, in the same memory."""
    with torch.device("meta"):
        first = torch.nn.Linear(linear.in_features, _VOCABULARY, bias=linear.bias is not None)
    for name, parameter in linear.named_parameters(recurse=False):
        setattr(first, name, torch.nn.Parameter(parameter[:_VOCABULARY], requires_grad=False))
    return first


class _SiteRecorder:
    """In a routing's place: keeps what each adapted module returns."""

    closed = False
    home = None

    def __init__(self) -> None:
        self.outputs: dict[str, torch.Tensor] = {}
        self.repeated = False

    def apply(self, path: str, layer: torch.nn.Module, x: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
        self.repeated |= path in self.outputs
        output: torch.Tensor = layer(x, *args, **kwargs)
        self.outputs[path] = output.clone()
        return output


class _OneSite:
    """In a routing's place: replays the adapted modules before ``last``, and lets the adapter act at that one alone."""

    closed = False
    home = None

    def __init__(self, outputs: Mapping[str, torch.Tensor], last: str, routing: Routing | None) -> None:
        self._outputs, self._last, self._routing = outputs, last, routing
        self._before = set(list(outputs)[: list(outputs).index(last) + 1])

    def apply(self, path: str, layer: torch.nn.Module, x: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
        if path not in self._before:
            output: torch.Tensor = layer(x, *args, **kwargs)
            return output
        if path == self._last and self._routing is not None:
            return self._routing.apply(path, _Replaying(self._outputs[path].clone(), layer), x, args, kwargs)
        return self._outputs[path].clone()


@dataclass(frozen=True)
class _Recorded:
    """One bare pass: each block's and each adapted module's output, in the order in which they ended.

    ``layout`` is the one of the arena at that time; another one has other modules.
    """

    layout: Layout
    blocks: Mapping[str, Any]
    sites: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Tail:
    """A model without its beginning, and what it answers where no adapter acts."""

    model: torch.nn.Module
    bare: Mapping[str, torch.Tensor]


class Tails:
    """The tails of one backbone for one probe row, made once for each module that they begin at.

    Args:
        inference: the backbone's.
        row: the token ids that everything here is run on.
    """

    def __init__(self, inference: Inference, row: list[int]) -> None:
        self._inference = inference
        self._row = row
        self._recorded: _Recorded | None = None
        self._tails: dict[str, _Tail | None] = {}
        self._lock = threading.Lock()  # while a tail is made; they are run without

    def differs(self, routing: Routing, sites: Collection[str]) -> bool:
        """Do the logits differ when the adapter of ``routing`` acts at the last of its ``sites`` alone?

        False also where that can't be asked of this model: its blocks depend on one another in ways that a replay
        doesn't keep, or run several times in a pass.
        """
        with self._lock:
            recorded = self._record(routing.arena.layout)
            last = next((path for path in reversed(list(recorded.sites)) if path in sites), None)
            if last is not None and last not in self._tails:
                self._tails[last] = self._open(recorded, last)
            tail = self._tails[last] if last is not None else None
        if tail is None or last is None:
            return False
        outputs = self._run(tail.model, _OneSite(recorded.sites, last, routing))
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in outputs.values())
        return finite and any(not torch.equal(tensor, tail.bare[name]) for name, tensor in outputs.items())

    def _run(self, model: torch.nn.Module, routing: Any) -> dict[str, torch.Tensor]:
        with torch.no_grad(), routed(routing):
            return tensors_of(model(**self._inference.probe_inputs(self._row)))

    def _record(self, layout: Layout) -> _Recorded:
        """The bare pass, recorded anew when other modules are adapted than then."""
        model = self._inference.model
        if self._recorded is None or self._recorded.layout is not layout:
            blocks: dict[str, Any] = {}
            recording = {path: _Recording(model.get_submodule(path), blocks, path) for path in _blocks(model)}
            mirror, sites = mirror_of(model, recording), _SiteRecorder()
            outputs = self._run(mirror, sites) if mirror is not None else {}
            self._recorded = _Recorded(layout, blocks, {} if sites.repeated else sites.outputs, outputs)
            self._tails = {}
        return self._recorded

    def _open(self, recorded: _Recorded, last: str) -> _Tail | None:
        """The tail that begins at ``last``; None where it doesn't answer as the whole model does."""
        model = self._inference.model
        ended: dict[str, torch.nn.Module] = {}
        for path, output in recorded.blocks.items():
            if last.startswith(f"{path}."):
                break
            ended[path] = _Replaying(output, model.get_submodule(path))
        tail = mirror_of(model, ended | self._output_layer())
        if tail is None:
            return None
        silent = _OneSite(recorded.sites, last, None)
        try:
            bare = self._run(tail, silent)
        except (RuntimeError, IndexError):  # the model adds to all of its logits, as BART does, or looks into them
            tail = mirror_of(model, ended)
            assert tail is not None
            bare = self._run(tail, silent)
        again = self._run(tail, silent)
        whole = {
            # The first logits, where the output layer gives no more; a router's loss is one number.
            name: recorded.outputs[name][..., : tensor.shape[-1]] if tensor.ndim else recorded.outputs[name]
            for name, tensor in bare.items()
        }
        replayed = bare.keys() == recorded.outputs.keys() and all(
            torch.equal(again[name], tensor) and torch.allclose(tensor, whole[name], rtol=_ROUNDING, atol=_ROUNDING)
            for name, tensor in bare.items()
        )
        return _Tail(tail, bare) if replayed else None

    def _output_layer(self) -> dict[str, torch.nn.Module]:
        layer = self._inference.model.get_output_embeddings()
        if type(layer) is not torch.nn.Linear or layer.out_features <= _VOCABULARY:
            return {}
        path = next(path for path, module in self._inference.model.named_modules() if module is layer)
        return {path: _first_rows(layer)}


def _blocks(model: torch.nn.Module) -> list[str]:
    """The paths of a model's blocks: the outermost modules that stand several of one class in a list."""
    found: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{block}.") for block in found)
        of_one_class = isinstance(module, torch.nn.ModuleList) and len({type(child) for child in module}) == 1
        if of_one_class and not inside:
            found += [f"{path}.{name}" for name, _ in module.named_children()]
    return found


def mirror_of(model: torch.nn.Module, replaced: Mapping[str, torch.nn.Module]) -> torch.nn.Module | None:
    """A model that shares all modules with ``model`` but those ``replaced`` (by path) and those that lead to them.

    None where one of the latter has a forward of its own, as accelerate gives to models that are spread over devices:
    it would call the original.
    """
    mirrors: dict[str, torch.nn.Module] = {"": _copy(model)}
    for path, module in replaced.items():
        parts = path.split(".")
        for depth in range(1, len(parts)):
            above, here = ".".join(parts[: depth - 1]), ".".join(parts[:depth])
            if here not in mirrors:
                mirrors[here] = mirrors[above]._modules[parts[depth - 1]] = _copy(model.get_submodule(here))
        mirrors[".".join(parts[:-1])]._modules[parts[-1]] = module
    return None if any("forward" in mirror.__dict__ for mirror in mirrors.values()) else mirrors[""]


def _copy(module: torch.nn.Module) -> torch.nn.Module:
    """The same module with a table of children of its own."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    if isinstance(copied.__dict__.get("forward"), CompiledForward):
        del copied.__dict__["forward"]  # a probe runs eagerly
    return copied
