"""A base in shards: each process keeps a part of every frozen linear, and all lend theirs for the moment it is used.

torch's ``fully_shard`` (FSDP2; Zhao et al. 2023) on each linear of the base's layers. What is trained, and embeddings,
norms, heads and fused experts, stay whole in each process, so that steps, checkpoints and files are those of a run with
whole bases.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from lorary.adapters.base.modules import linear_shape
from lorary.hub.errors import TrainingError
from lorary.training.distributed import PATIENCE, Group

_DONE = -1


@dataclass(frozen=True)
class Shards:
    """The linears that are cut up, in an order that all processes have, and the ``channel`` they are asked for on."""

    linears: tuple[Any, ...]
    channel: Any

    @property
    def held(self) -> int:
        """Bytes of the linears that this process keeps."""
        return sum(parameter.to_local().nbytes for linear in self.linears for parameter in linear.parameters())

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Let the first process use the model alone, while each of the others calls :meth:`lend`.

        Whatever runs a linear asks the others for their parts of it. After an error the others aren't told: they see
        that this process ends.
        """
        hooks = [
            linear.register_forward_pre_hook(lambda module, inputs, index=index: self._say(index), prepend=True)
            for index, linear in enumerate(self.linears)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._say(_DONE)

    def lend(self) -> None:
        """Give parts to the first process for as long as it has :meth:`borrowed` them."""
        asked = torch.empty(1, dtype=torch.long)
        while True:
            dist.broadcast(asked, src=0, group=self.channel)
            if (index := int(asked)) == _DONE:
                return
            self.linears[index].unshard()
            self.linears[index].reshard()

    def _say(self, index: int) -> None:
        dist.broadcast(torch.tensor([index]), src=0, group=self.channel)


@dataclass(frozen=True)
class Links:
    """What the processes of a group reach each other by: for parts of the base, and for being asked for them."""

    device: torch.device
    mesh: Any
    channel: Any

    @classmethod
    def among(cls, group: Group) -> Links:
        """All of the group's processes call this."""
        from torch.distributed.device_mesh import init_device_mesh

        device = torch.device(group.device)
        mesh = init_device_mesh(device.type, (group.count,))
        return cls(device, mesh, dist.new_group(backend="gloo", timeout=PATIENCE))


def shard(model: Any, links: Links) -> Shards:
    """Cut up the base of a ``PeftModel`` that is on the CPU, and move it to this process's device.

    Each process does so by itself, so that they may do it one after the other.

    Raises:
        TrainingError: the base has no linears in a list of layers.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    linears = _frozen_linears(model)
    if not linears:
        raise TrainingError(
            f"{type(model.get_base_model()).__name__} has no layers that could be cut up; leave FSDP out"
        )
    device = links.device
    for linear in linears:
        if (state := getattr(linear.weight, "quant_state", None)) is not None:
            state.to(device)
            linear.quant_state = state  # bitsandbytes takes it from there where the weight has been put together anew
        fully_shard(linear, mesh=links.mesh, reshard_after_forward=True)
        linear.register_forward_hook(_no_view, prepend=True)
    cut = {id(parameter) for linear in linears for parameter in linear.parameters()}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in cut:
            tensor.data = tensor.data.to(device)
    # The gradients' averaging has nothing to do with what is frozen, and couldn't compare parts.
    names = [name for name, parameter in model.named_parameters() if id(parameter) in cut]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    return Shards(linears, links.channel)


def _no_view(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Conv1D gives a view, which loses torch's call for the weight's parts in backward where it is changed in place."""
    return output.clone() if output._is_view() else output


def _frozen_linears(model: Any) -> tuple[Any, ...]:
    """The linears that stand in a list of layers, of which nothing is trained, and whose weight is theirs alone."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    listed = {
        id(module): module
        for layers in model.modules()
        if isinstance(layers, torch.nn.ModuleList)
        for module in layers.modules()
        if linear_shape(module) is not None
    }
    return tuple(
        module
        for module in listed.values()
        if (own := list(module.parameters(recurse=False)))
        and not list(module.children())
        and not any(parameter.requires_grad or owners[id(parameter)] > 1 for parameter in own)
    )
