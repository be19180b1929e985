"""Callers with CUDA streams of their own: slots are filled on the default ones, which know nothing of these.

Without a word to the GPU a call would read a slot before its copy has arrived, or have it written over while it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def in_order(devices: Iterable[torch.device]) -> Iterator[None]:
    """What the block queues on this thread's own streams comes after what the default ones have by then.

    And before what they are given once the block has ended.
    """
    own = _own_streams(devices)
    for stream, default in own:
        stream.wait_stream(default)
    try:
        yield
    finally:
        for stream, default in own:
            default.wait_stream(stream)


@contextmanager
def on_default_streams(devices: Iterable[torch.device]) -> Iterator[None]:
    """Within the block this thread queues on the default streams; its own ones go on after that."""
    own = _own_streams(devices)
    with ExitStack() as stack:
        for _, default in own:
            stack.enter_context(torch.cuda.stream(default))
        yield
    for stream, default in own:
        stream.wait_stream(default)


def _own_streams(devices: Iterable[torch.device]) -> list[tuple[torch.cuda.Stream, torch.cuda.Stream]]:
    """This thread's streams that aren't the default ones, each with that of its device; none while a graph is captured.

    What is captured can't wait for what isn't.
    """
    gpus = [device for device in devices if device.type == "cuda"]
    streams = [(torch.cuda.current_stream(gpu), torch.cuda.default_stream(gpu)) for gpu in gpus]
    own = [(stream, default) for stream, default in streams if stream != default]
    return [] if own and torch.cuda.is_current_stream_capturing() else own
