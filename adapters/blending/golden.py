"""Golden logits for a blend: nobody trained it, so they are what it answers when it is first loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lorary.adapters.blending.parts import Part
from lorary.adapters.layer.routing import Routing
from lorary.adapters.proving.golden import choose_rows, condense, write_golden
from lorary.adapters.running.inference import Inference
from lorary.hub.checkpoint import CONFIG_NAME, Checkpoint, read_checkpoint
from lorary.hub.manifest import Numerics


def add_golden(
    checkpoint: Checkpoint, parts: Sequence[Part], inference: Inference, routing: Routing, numerics: Numerics
) -> Checkpoint:
    """Write what the blend answers for some of its parts' golden rows beside it; they are no part of its digest.

    Nothing is written where the parts have none, or were trained on weights of another quantization than these.
    """
    manifest, adapter = checkpoint.manifest, routing.adapters[0]
    assert manifest is not None
    assert adapter is not None
    rows = choose_rows([row for part in parts for row in _rows(part)])
    if not rows or manifest.numerics.quantization != numerics.quantization:
        return checkpoint
    folder = checkpoint.files[CONFIG_NAME].parent
    logits: list[torch.Tensor] = [condense(adapter.task, inference.logits(row, routing)) for row in rows]
    write_golden(folder, logits)
    replace(manifest, numerics=numerics, golden_rows=tuple(map(tuple, rows))).write(folder)
    return read_checkpoint(folder, shown=checkpoint.source)


def _rows(part: Part) -> Sequence[Sequence[int]]:
    manifest = part.checkpoint.manifest
    return manifest.golden_rows if manifest else ()
