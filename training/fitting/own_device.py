"""A run's device: transformers knows the CPU and the first GPU alone, and would move the model there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lorary.adapters.heads.spread import bring_answers


def one_device(arguments: Any, model: Any) -> Any:
    """One process trains on one device, its model's, or on a device map.

    Several visible GPUs must not start DataParallel. To be called within :func:`device_of`, since the settings of a
    trainer make the first GPU the process's own.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    device = next(model.parameters()).device
    if device.type == "cuda" and device != arguments.device:
        torch.cuda.set_device(device)  # what accelerate and random numbers go by
        vars(arguments)["_setup_devices"] = device  # where `arguments.device` is kept once it was found
    return arguments


@contextmanager
def device_of(model: Any) -> Iterator[None]:
    """Within the block the model's first GPU is the process's own, and there it answers; as before afterwards."""
    devices = [parameter.device for parameter in model.parameters()]
    if devices[0].type != "cuda":
        yield
        return
    # As accelerate does for a model that is spread over GPUs, in whose place TRL puts a forward of its own.
    hooks = bring_answers([model] if len(set(devices)) > 1 else [], devices[0])
    try:
        with torch.cuda.device(devices[0]):
            yield
    finally:
        for hook in hooks:
            hook.remove()
