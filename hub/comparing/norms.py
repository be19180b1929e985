"""How large an adapter's updates are, and how far two adapters' lie apart, module by module, without torch.

Of a LoRA pair it is the update itself that is measured, scale * B A, since A and B alone say little: the same update
has many factors. Its Frobenius norm is taken from the factors' QR decompositions, so that no matrix of the module's
size is made, and that of a difference from the factors side by side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorary.hub.checkpoint import WEIGHTS_NAME, Checkpoint
from lorary.hub.comparing.scaling import rank_and_scale
from lorary.hub.errors import CheckpointError
from lorary.hub.tensorfile import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[Any]
    _Measured = tuple["_Update | _Whole | None", float | None, str]

_PAIR = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?(?P<factor>[AB])(?:\.weight)?")
_PREFIX = "base_model.model."
_BLOCK = 1 << 20  # values
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


class _Update:
    """The update of a LoRA pair: ``b`` holds the scale, [out, rank], ``a`` is [rank, in]."""

    def __init__(self, b: Matrix, a: Matrix) -> None:
        self.factors = (b, a)
        self.shape = (b.shape[0], a.shape[1])

    def norm(self) -> float:
        return _norm(*self.factors)

    def distance(self, other: _Update) -> float:
        import numpy

        (b, a), (d, c) = self.factors, other.factors
        if numpy.array_equal(b, d) and numpy.array_equal(a, c):
            return 0.0  # without what the arithmetic rounds off
        return _norm(numpy.hstack([b, -d]), numpy.vstack([a, c]))


class _Whole:
    """A tensor that is trained whole; read block by block, since it may be as large as a vocabulary."""

    def __init__(self, path: Path, info: TensorInfo) -> None:
        self._path, self._info = path, info
        self.shape = info.shape

    def norm(self) -> float:
        return math.sqrt(sum(float(block @ block) for block in _blocks(self._path, self._info)))

    def distance(self, other: _Whole) -> float:
        pairs = zip(_blocks(self._path, self._info), _blocks(other._path, other._info), strict=True)
        return math.sqrt(sum(float((ours - theirs) @ (ours - theirs)) for ours, theirs in pairs))


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


def _update(
    checkpoint: Checkpoint, name: str, names: Mapping[str, tuple[str, ...]]
) -> tuple[_Update | _Whole | None, float | None, str]:
    """What to measure, its norm, and why one of them is missing."""
    if name not in names:
        return None, None, ""
    path, infos = checkpoint.files[WEIGHTS_NAME], [checkpoint.tensors[key] for key in names[name]]
    if unknown := next((info.dtype for info in infos if info.dtype not in (*_NUMPY, "BF16")), None):
        return None, None, f"norms of {unknown} aren't computed"
    update = _Whole(path, infos[0]) if len(infos) == 1 else _pair(checkpoint, name, path, *infos)
    norm = update.norm()
    return (update, norm, "") if math.isfinite(norm) else (None, None, "holds NaN or infinity")


def _pair(checkpoint: Checkpoint, name: str, path: Path, b_info: TensorInfo, a_info: TensorInfo) -> _Update:
    rank = a_info.shape[0] if a_info.shape else 0
    if not rank or not b_info.shape or b_info.elements != b_info.shape[0] * rank:
        shapes = f"A {list(a_info.shape)} and B {list(b_info.shape)}"
        raise CheckpointError(f"{checkpoint.source}: {name}: {shapes} don't fit together; save the adapter again")
    import numpy

    # A convolution's factors have the kernel's extent behind, [rank, in, k, k] and [out, rank, 1, 1].
    b, a = (numpy.concatenate([*_blocks(path, info)]).reshape(info.shape[0], -1) for info in (b_info, a_info))
    return _Update(b * _scale(checkpoint, name), a)


def _scale(checkpoint: Checkpoint, name: str) -> float:
    try:
        return float(rank_and_scale(checkpoint.config, name)[1])
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{checkpoint.source}: its config gives {name} no rank and alpha ({error})") from error


def _blocks(path: Path, info: TensorInfo) -> Iterator[Matrix]:
    """A tensor's values in float64; the header was held against the file when the checkpoint was read."""
    import numpy

    kind = numpy.dtype(_NUMPY.get(info.dtype, "<u2"))
    for first in range(0, max(info.elements, 1), _BLOCK):
        count = min(_BLOCK, info.elements - first)
        try:
            values = numpy.fromfile(path, kind, count, offset=info.start + first * kind.itemsize)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({error.strerror or error})") from error
        if len(values) != count:
            raise CheckpointError(f"{path}: ends in the middle of a tensor; copy it again")
        if info.dtype == "BF16":  # the upper half of a float32
            values = (values.astype("<u4") << 16).view("<f4")
        yield values.astype(numpy.float64)


def _compare(name: str, left: _Measured, right: _Measured) -> NormDifference:
    (ours, our_norm, our_note), (theirs, their_norm, their_note) = left, right
    notes = [f"{side}: {note}" for side, note in (("left", our_note), ("right", their_note)) if note]
    difference = relative = None
    if ours is None or theirs is None:
        if not notes:
            notes.append("only left" if theirs is None else "only right")
    elif type(ours) is not type(theirs) or ours.shape != theirs.shape:
        notes.append(f"{list(ours.shape)} and {list(theirs.shape)} can't be compared")
    else:
        difference = ours.distance(theirs)  # type: ignore[arg-type]
        larger = max(our_norm or 0.0, their_norm or 0.0)
        relative = difference / larger if larger else 0.0
    return NormDifference(name, our_norm, their_norm, difference, relative, "; ".join(notes))


def _norm(b: Matrix, a: Matrix) -> float:
    import numpy

    if not (numpy.isfinite(b).all() and numpy.isfinite(a).all()):
        return math.nan
    left, right = (numpy.asarray(numpy.linalg.qr(factor, mode="r")) for factor in (b, a.T))
    return float(numpy.linalg.norm(left @ right.T))
