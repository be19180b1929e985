"""The gate: the saved files, through the loader, onto the base in memory, must give back what was trained.

A checkpoint that was saved wrongly loads without an error in most libraries and answers like the bare base. So nothing
enters the catalogue before its files have shown, read the way a user will read them, what the trained model showed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from lorary.adapters import Backbone
from lorary.adapters.proving.golden import compare_golden, condense
from lorary.hub.errors import GateError, LoraryError
from lorary.training.save import Trained
from lorary.training.tasks.base import Metrics, Task
from lorary.training.tasks.heads.embeddings import FOUND_WITHIN
from lorary.training.tasks.rows.encoded import Encoded

TENSOR_TOLERANCE: Mapping[str, float] = {"float32": 1e-6, "bfloat16": 1e-2, "float16": 2e-3}
"""How far a tensor may be from the trained one, relative to its largest value: what the loader's dtype rounds off."""

METRIC_TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.05}
"""How far a metric may be from the trained model's, relative to 1 + its value: rows near a tie may fall otherwise.

In half precision one row may in any case, which is more than that where few are held out; and to a macro F1 or to MCC
it is worth up to three of them.
"""


RANKS = frozenset(
    {"auc", "spearman", "accuracy@1", f"mrr@{FOUND_WITHIN}", f"recall@{FOUND_WITHIN}", "triplet_accuracy"}
)
"""Metrics of an order, which jump where two rows nearly tie, as the embeddings of an untrained pooling do."""

RANK_TOLERANCE = 0.05
"""How far these may be, whatever the dtype; where one row's place is more, as far as that."""


def gate(
    folder: Path, backbone: Backbone, task: Task, trained: Trained, rows: Encoded, expected: Metrics | None
) -> None:
    """Hold a saved adapter against the trained model.

    Args:
        folder: the saved files.
        backbone: around the base that the adapter was trained on, unloaded from it.
        rows: up to ``task.gate_rows`` held-out rows, and ``expected`` the trained model's metrics on exactly these.

    Raises:
        GateError: nothing was learned, the files don't load, or a tensor, a golden row or the metric differs; the
            message names it.
    """
    demand_learned(trained.tensors)
    name = "candidate"
    try:
        backbone.load(folder, name)
    except LoraryError as error:
        raise GateError(f"the saved adapter doesn't load: {error}") from error
    try:
        compare_tensors(trained.tensors, backbone.state(name), TENSOR_TOLERANCE[trained.numerics.dtype])
        found = backbone.logits([list(row) for row in trained.golden_rows], name)
        try:
            compare_golden(trained.golden, [condense(task.name, logits) for logits in found], trained.numerics)
        except LoraryError as error:
            raise GateError(str(error)) from error
        if expected is not None and rows.features:
            # 8-bit layers round what they are given, so that near ties fall as they do in half precision.
            dtype = "bfloat16" if trained.numerics.quantization == "int8" else trained.numerics.dtype
            actual = task.metrics(task.through(backbone, name, rows), rows.golds)
            compare_metrics(task.gated(expected, dtype), actual, METRIC_TOLERANCE[dtype], len(rows.features))
    finally:
        backbone.unload(name)


def demand_learned(tensors: Mapping[str, torch.Tensor]) -> None:
    """A B that began as zero must be something else after the training.

    Raises:
        GateError: all are zero still.
    """
    ups = [tensor for key, tensor in tensors.items() if "lora_B" in key or "lora_embedding_B" in key]
    if ups and not any(bool(tensor.any()) for tensor in ups):
        raise GateError(
            "every lora_B is zero after the training as it was before it: in no step did a gradient come through the "
            "base to its targets. So it is where the base's values are saturated, mostly since its weights are random "
            "or damaged; check the base, or choose another one"
        )


def compare_tensors(expected: Mapping[str, torch.Tensor], actual: Mapping[str, torch.Tensor], tolerance: float) -> None:
    """Every trained tensor must be there under its name, and nothing else.

    Raises:
        GateError: a key is missing, unexpected, of another shape, or holds other values.
    """
    for key in sorted(expected.keys() | actual.keys()):
        if key not in actual:
            raise GateError(f"{key!r} was trained, but the loaded adapter lacks it")
        if key not in expected:
            raise GateError(f"the loaded adapter has {key!r}, which wasn't trained")
        want, got = expected[key], actual[key].float().cpu()
        if want.shape != got.shape:
            raise GateError(f"{key!r}: trained with shape {list(want.shape)}, loaded with {list(got.shape)}")
        if not want.numel():  # MobileBERT's head has such a weight where embeddings are as wide as hidden states
            continue
        difference = float((want - got).abs().max() / want.abs().max().clamp(min=1e-12))
        if not difference <= tolerance:
            raise GateError(
                f"{key!r}: the loaded tensor differs from the trained one by {difference:.2g} of its largest value, "
                f"{tolerance:g} is allowed"
            )


def compare_metrics(expected: Metrics, actual: Metrics, tolerance: float, rows: int) -> None:
    """Every metric of these rows must be the trained model's.

    Raises:
        GateError: one differs.
    """
    for name, want in expected.items():
        of_few = (1 if name in RANKS else 3 if tolerance > METRIC_TOLERANCE["float32"] else 0) / rows
        allowed = max(tolerance, of_few, RANK_TOLERANCE if name in RANKS else 0)
        if not abs(actual[name] - want) <= allowed * (1 + abs(want)):
            raise GateError(
                f"metric {name!r} on held-out rows: {want:.4f} in training, {actual[name]:.4f} with the saved adapter"
            )
