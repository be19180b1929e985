"""Golden logits: what an adapter answers for a few token rows, kept with its version so that anyone can check it.

They are comparable where quantization, dtype and kind of device are those of training; elsewhere only the direction of
the adapter's effect is, as the cosine of adapter-minus-bare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lorary.hub.checkpoint import GOLDEN_NAME, Checkpoint
from lorary.hub.errors import CheckpointError, GoldenMismatchError
from lorary.hub.manifest import GENERATING, Numerics
from lorary.hub.tensorfile import read_header

ROWS = 4
LONGEST = 64

TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""The largest difference allowed, by dtype, relative to 1 + the largest golden logit of the row.

Rows are run one at a time, so neither padding nor batch mates add to it; weights of 4 bits are the same bits in both
runs, so these don't either.
"""

EIGHT_BIT_TOLERANCE = 0.1
"""The same on an 8-bit backbone, whose layers round what they are given too (Dettmers et al. 2022).

A value that differs in its last bit is now and then rounded to the next step: 3e-2 was found on a model of 3M
parameters. So far from the full-precision model are its logits in any case.
"""


def tolerance(dtype: str, quantization: str) -> float:
    """The largest difference allowed in this arithmetic, relative to 1 + the largest logit of the row."""
    return max(TOLERANCE[dtype], EIGHT_BIT_TOLERANCE) if quantization == "int8" else TOLERANCE[dtype]


def choose_rows(token_rows: Sequence[Sequence[int]], count: int = ROWS, longest: int = LONGEST) -> list[list[int]]:
    """Up to ``count`` rows, spread over those given, each cut to ``longest`` tokens; empty rows are passed over."""
    usable = [list(row[:longest]) for row in token_rows if row]
    step = max(1, len(usable) // count)
    return usable[::step][:count]


def condense(task: str, logits: torch.Tensor) -> torch.Tensor:
    """What is kept of a row's logits: all of a classifier's, one token's of a language model.

    A causal model's last token has seen the whole row; of a masked one's the middle token stands for all. Of
    hidden states, [tokens, hidden], the mean over the tokens: each of them has a part in it.
    """
    if task == "fill-mask":
        logits = logits[len(logits) // 2]
    if task == "feature-extraction":
        logits = logits.float().mean(dim=0)
    return (logits[-1] if task in GENERATING else logits).detach().float().cpu().contiguous()


def write_golden(folder: Path, logits: Sequence[torch.Tensor]) -> Path:
    """Write ``golden.safetensors`` (one float32 tensor a row, named by its index) and return its path."""
    from safetensors.torch import save_file

    path = folder / GOLDEN_NAME
    save_file({str(index): row.float().contiguous() for index, row in enumerate(logits)}, path)
    return path


def check_golden_rows(checkpoint: Checkpoint, vocabulary: int, longest: int | None) -> None:
    """Can a model with this ``vocabulary`` and room for ``longest`` tokens (None: any number) read the golden rows?

    And are there as many golden logits, where there are any? Asked of the file's header.

    Raises:
        CheckpointError: it can't, or the file is damaged or doesn't fit the manifest's rows.
    """
    for row in checkpoint.manifest.golden_rows if checkpoint.manifest else ():
        if not row or max(row) >= vocabulary or (longest is not None and len(row) > longest):
            most = "of at least 1 token" if longest is None else f"from 1 to {longest} tokens"
            raise CheckpointError(
                f"{checkpoint.source}: golden rows: expected {most} below {vocabulary}, found {list(row)!s:.80}; the "
                "manifest is damaged, or of another base"
            )
    _check_number(checkpoint)


def _check_number(checkpoint: Checkpoint) -> None:
    path = checkpoint.files.get(GOLDEN_NAME)
    if path is None or checkpoint.manifest is None:
        return
    rows, held = len(checkpoint.manifest.golden_rows), read_header(path)
    if held.keys() != {str(index) for index in range(rows)}:
        raise CheckpointError(f"{checkpoint.source}: {GOLDEN_NAME} holds {len(held)} rows, the manifest names {rows}")


def read_golden(checkpoint: Checkpoint) -> list[torch.Tensor] | None:
    """The golden logits of a checkpoint, row by row, or None where it has none.

    Raises:
        CheckpointError: the file is damaged or doesn't fit the manifest's rows.
    """
    path = checkpoint.files.get(GOLDEN_NAME)
    if path is None or checkpoint.manifest is None:
        return None
    _check_number(checkpoint)
    tensors = load_tensors(path)
    return [tensors[str(index)] for index in range(len(checkpoint.manifest.golden_rows))]


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: the file can't be read as one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); copy it again") from error


def _demand_shapes(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]) -> None:
    """Are golden logits of the shapes of those computed now?

    Raises:
        GoldenMismatchError: they aren't.
    """
    for index, (want, got) in enumerate(zip(expected, actual, strict=True)):
        if want.shape != got.shape:
            raise GoldenMismatchError(
                f"golden row {index}: expected logits of shape {list(want.shape)}, found {list(got.shape)}"
            )


def compare_golden(
    expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor], numerics: Numerics, kept: str | None = None
) -> float:
    """The largest difference, relative to 1 + the row's largest logit; of an adapter in a slot of dtype ``kept``.

    Raises:
        GoldenMismatchError: a row has another shape, or differs by more than :func:`tolerance`.
    """
    dtype = max(numerics.dtype, kept or numerics.dtype, key=lambda name: TOLERANCE[name])  # the coarser one
    limit = tolerance(dtype, numerics.quantization)
    arithmetic = "int8" if numerics.quantization == "int8" else dtype
    worst = 0.0
    _demand_shapes(expected, actual)
    for index, (want, got) in enumerate(zip(expected, actual, strict=True)):
        difference = float((want - got).abs().max() / (1 + want.abs().max()))
        # A NaN compares false with everything, so ask whether it is within, not whether it is beyond.
        if not difference <= limit:
            raise GoldenMismatchError(
                f"golden row {index}: logits differ by {difference:.2g} (relative), {limit:.0e} is allowed for "
                f"{arithmetic}; the files aren't what was trained, or the base is another"
            )
        worst = max(worst, difference)
    return worst


def effect_cosine(
    golden: Sequence[torch.Tensor], actual: Sequence[torch.Tensor], bare: Sequence[torch.Tensor]
) -> float:
    """The cosine between the golden effect (golden minus bare) and the actual one, over all rows; 1 means the same.

    Raises:
        GoldenMismatchError: a row has another shape.
    """
    _demand_shapes(golden, actual)

    def effect(rows: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([(row - base).flatten() for row, base in zip(rows, bare, strict=True)])

    return float(torch.nn.functional.cosine_similarity(effect(golden), effect(actual), dim=0))
