"""An adapter folded into the weights of its backbone, module by module; the backbone itself is only read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorary.adapters.base.modules import ModuleMap, output_scale
from lorary.adapters.base.quantization import dense_weight
from lorary.adapters.heads.masked import HeadLora
from lorary.adapters.heads.numbers import Float32Linear
from lorary.adapters.heads.task_heads import SharedBody, SharedPart
from lorary.adapters.layer.lora import LoraLayer
from lorary.adapters.layer.override import TrainedLinear
from lorary.adapters.layer.slots import LowRank
from lorary.hub.errors import MergeError


@dataclass(frozen=True)
class Place:
    """Where a merged model's tensor comes from: a module of the backbone or of the adapter's head, and a name in it.

    ``path`` is the module's in the backbone where adapters act on it, None elsewhere.
    """

    key: str
    module: torch.nn.Module
    name: str
    path: str | None

    @property
    def owner(self) -> Any:
        """The module whose tensor it is: what an update of a head was put beside."""
        return self.module.base_layer if isinstance(self.module, HeadLora) else self.module

    @property
    def source(self) -> torch.Tensor:
        """The tensor as it lies there, quantized or not."""
        found = self.owner._parameters.get(self.name)
        tensor: torch.Tensor = found if found is not None else self.owner._buffers[self.name]
        return tensor


@dataclass(frozen=True)
class Changes:
    """What an adapter changes in its backbone, by path: low-rank updates, and linears that it trained whole."""

    factors: Mapping[str, LowRank]
    overrides: Mapping[str, TrainedLinear]
    modules: ModuleMap

    def at(self, place: Place) -> str | None:
        """The path at which a tensor gets other values, None where it is left alone."""
        if place.path is None or place.path in self.overrides:
            return place.path
        weights = self.factors.get(place.path)
        acts = weights is not None and (place.name == "weight" or weights.bias is not None)
        return place.path if acts else None


def find_places(keys: Iterable[str], model: Any) -> list[Place]:
    """The place of each of a model's tensors, in a ``model`` around the shared body or in the body itself."""
    places = []
    for key in keys:
        path, _, name = key.rpartition(".")
        module = model
        for part in path.split(".") if path else ():
            module = module.get_submodule(part)
            if isinstance(module, (SharedBody, SharedPart)):
                module = module.shared
        is_layer = isinstance(module, LoraLayer)
        places.append(Place(key, module.base_layer if is_layer else module, name, module.path if is_layer else None))
    return places


def splits_a_tie(places: Iterable[Place], changes: Changes) -> bool:
    """Do tensors that are one in the backbone (an embedding and its output layer) become two?"""
    paths: dict[int, set[str | None]] = {}
    for place in places:
        paths.setdefault(id(place.source), set()).add(changes.at(place))
    return any(len(different) > 1 for different in paths.values())


def merged_tensors(
    places: Iterable[Place], changes: Changes, dtype: torch.dtype, *, tied: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor of the merged model by its key, on the CPU, floating-point ones in ``dtype``.

    Those of a layer that numbers come from are float32: a mean that is rounded in the file is lost for good.
    One at a time is dequantized and merged, in float32 on its module's device. What is one tensor in the backbone is
    given as one where the merged model keeps its ties (``tied``), else anew for each key.

    Raises:
        MergeError: a tensor is offloaded, so that it can't be read.
    """
    made: dict[tuple[int, str | None], torch.Tensor] = {}
    for place in places:
        path = changes.at(place)
        same = id(place.source), path
        if same not in made:
            tensor = _plain(place) if path is None else _merge(place, path, changes)
            wanted = torch.float32 if isinstance(place.owner, Float32Linear) else dtype
            kind = wanted if tensor.is_floating_point() else tensor.dtype
            made[same] = tensor.to(device="cpu", dtype=kind).contiguous()
        yield place.key, made[same] if tied else made[same].clone()


def demand_biases(places: Iterable[Place], changes: Changes) -> None:
    """Refuse an adapter whose biases have no place.

    Raises:
        MergeError: a module with ``lora_bias`` has no bias of its own to add it to.
    """
    there = {(place.path, place.name) for place in places}
    for path, weights in changes.factors.items():
        if weights.bias is not None and (path, "bias") not in there:
            raise MergeError(
                f"the adapter adds a bias at {path!r}, which has none in this model's class, so no merged model can "
                "hold it; serve the adapter on its backbone instead"
            )


def _plain(place: Place) -> torch.Tensor:
    """A tensor of the backbone as numbers."""
    if place.source.is_meta:
        raise MergeError(f"{place.key!r} is offloaded, so it can't be read here; open the base without device_map")
    if isinstance(place.module, HeadLora):
        return place.module.merged(place.name)
    return dense_weight(place.module) if place.name == "weight" else place.source.detach()


def _merge(place: Place, path: str, changes: Changes) -> torch.Tensor:
    """A weight or bias with the update in it, float32, laid out as the module has it."""
    if path in changes.overrides:
        return changes.overrides[path].parameter(place.name)
    weights, shape, own = changes.factors[path], changes.modules.site(path), _plain(place).float()
    assert shape is not None
    gain = 1 if weights.gain is None else 1 + weights.gain.to(own)
    if place.name == "bias":
        assert weights.bias is not None
        return gain * own + weights.scale * weights.bias.to(own)
    # What an embedding multiplies its output by multiplies the merged weight too, so it isn't part of it.
    scale = weights.scale / output_scale(place.module, shape)
    delta = scale * (weights.b.to(own) @ weights.a.to(own))
    if shape.transposed:
        return own * gain + delta.T
    return own * (gain if isinstance(gain, int) else gain[:, None]) + delta
