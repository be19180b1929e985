"""How large an adapter's updates are, and how far two adapters' lie apart, module by module, without torch.

Of a LoRA pair it is the update itself that is measured, scale * B A, since A and B alone say little: the same update
has many factors. Its Frobenius norm is taken from the factors' QR decompositions, so that no matrix of the module's
size is made, and that of a difference from the factors side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorary.hub.checkpoint import WEIGHTS_NAME, Checkpoint
from lorary.hub.errors import CheckpointError
from lorary.hub.scaling import rank_and_scale
from lorary.hub.tensorfile import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[Any]

_PAIR = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?(?P<factor>[AB])(?:\.weight)?")
_PREFIX = "base_model.model."
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}


@dataclass(frozen=True)
class NormDifference:
    """A module's update, or a tensor that is trained whole, in two adapters; norms are Frobenius norms.

    A norm is None where an adapter doesn't have it, or where it can't be computed. ``difference`` is the norm of the
    one minus the other, ``relative`` that by the larger norm: 0 is the same, 1.4 unrelated, 2 the opposite. ``note``
    says why something is missing.
    """

    module: str
    left: float | None
    right: float | None
    difference: float | None
    relative: float | None
    note: str = ""


@dataclass(frozen=True)
class _Update:
    """What is measured: a tensor, or the two factors of an update with its scale in the first."""

    factors: tuple[Matrix, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        if len(self.factors) == 1:
            return tuple(self.factors[0].shape)
        b, a = self.factors
        return (b.shape[0], a.shape[1])


def compare_norms(left: Checkpoint, right: Checkpoint) -> list[NormDifference]:
    """Compare two adapters' updates, the most different modules first, then those that only one of them has.

    Raises:
        CheckpointError: a config or a tensor doesn't hold what it should.
    """
    ours, theirs = _names(left), _names(right)
    found = [
        _compare(name, _update(left, name, ours), _update(right, name, theirs)) for name in sorted({*ours, *theirs})
    ]
    return sorted(found, key=lambda one: (one.relative is None, -(one.relative or 0.0)))


def _names(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """The keys of each update by its name: B's and A's of a module, or a tensor's own."""
    pairs: dict[str, dict[str, str]] = {}
    for key in checkpoint.tensors:
        if match := _PAIR.fullmatch(key):
            pairs.setdefault(match["module"], {})[match["factor"]] = key
    whole = {module: (keys["B"], keys["A"]) for module, keys in pairs.items() if keys.keys() == {"A", "B"}}
    paired = {key for keys in whole.values() for key in keys}
    names: dict[str, tuple[str, ...]] = {module.removeprefix(_PREFIX): keys for module, keys in whole.items()}
    return names | {key.removeprefix(_PREFIX): (key,) for key in checkpoint.tensors if key not in paired}


def _update(checkpoint: Checkpoint, name: str, names: Mapping[str, tuple[str, ...]]) -> _Update | str | None:
    """An update in float64; None where the adapter hasn't got it, a text where it can't be computed."""
    if name not in names:
        return None
    path, infos = checkpoint.files[WEIGHTS_NAME], [checkpoint.tensors[key] for key in names[name]]
    if unknown := next((info.dtype for info in infos if info.dtype not in (*_NUMPY, "BF16")), None):
        return f"norms of {unknown} aren't computed"
    tensors = [_read(path, info) for info in infos]
    if len(tensors) == 1:
        return _finite(_Update((tensors[0],)))
    b, a = tensors
    if not a.ndim or not b.ndim or b.size != b.shape[0] * a.shape[0]:
        raise CheckpointError(
            f"{checkpoint.source}: {name}: A {list(a.shape)} and B {list(b.shape)} don't fit together"
        )
    # A convolution's factors have the kernel's extent behind, [rank, in, k, k] and [out, rank, 1, 1].
    return _finite(_Update((b.reshape(b.shape[0], -1) * _scale(checkpoint, name), a.reshape(a.shape[0], -1))))


def _finite(update: _Update) -> _Update | str:
    import numpy

    whole = all(bool(numpy.isfinite(factor).all()) for factor in update.factors)
    return update if whole else "holds NaN or infinity"


def _scale(checkpoint: Checkpoint, name: str) -> float:
    try:
        return float(rank_and_scale(checkpoint.config, name)[1])
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{checkpoint.source}: its config gives {name} no rank and alpha ({error})") from error


def _read(path: Path, info: TensorInfo) -> Matrix:
    """A tensor as float64, in its shape; the header was held against the file when the checkpoint was read."""
    import numpy

    kind = numpy.dtype(_NUMPY.get(info.dtype, "<u2"))
    try:
        values = numpy.fromfile(path, kind, info.elements, offset=info.start)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or error})") from error
    if len(values) != info.elements:
        raise CheckpointError(f"{path}: ends in the middle of a tensor; copy it again")
    if info.dtype == "BF16":  # the upper half of a float32
        values = (values.astype("<u4") << 16).view("<f4")
    return values.astype(numpy.float64).reshape(info.shape)


def _compare(name: str, left: _Update | str | None, right: _Update | str | None) -> NormDifference:
    notes = list(_notes(left, right))
    norms = [_norm(side.factors) if isinstance(side, _Update) else None for side in (left, right)]
    difference = relative = None
    if isinstance(left, _Update) and isinstance(right, _Update):
        if left.shape == right.shape and len(left.factors) == len(right.factors):
            difference = _distance(left, right)
            larger = max(norm for norm in norms if norm is not None)
            relative = difference / larger if larger else 0.0
        else:
            notes.append(f"{list(left.shape)} and {list(right.shape)} can't be compared")
    return NormDifference(name, norms[0], norms[1], difference, relative, "; ".join(notes))


def _notes(left: _Update | str | None, right: _Update | str | None) -> Iterator[str]:
    for side, which in ((left, "left"), (right, "right")):
        if isinstance(side, str):
            yield f"{which}: {side}"
        elif side is None:
            yield f"only {'right' if which == 'left' else 'left'}"


def _norm(factors: tuple[Matrix, ...]) -> float:
    import numpy

    if len(factors) == 1:
        return float(numpy.linalg.norm(factors[0]))
    b, a = factors
    left, right = (numpy.asarray(numpy.linalg.qr(factor, mode="r")) for factor in (b, a.T))
    return float(numpy.linalg.norm(left @ right.T))


def _distance(left: _Update, right: _Update) -> float:
    import numpy

    if all(map(numpy.array_equal, left.factors, right.factors)):
        return 0.0  # without what the arithmetic rounds off
    if len(left.factors) == 1:
        return _norm((left.factors[0] - right.factors[0],))
    (b, a), (d, c) = left.factors, right.factors
    return _norm((numpy.hstack([b, -d]), numpy.vstack([a, c])))
