"""The products of a call's rows in Triton, on a GPU: each adapter is read where it is kept, and once for its rows.

    out[row] = out[row] * (1 + gain[slot of row]) + x[row] A[slot of row] B[slot of row] + bias[slot of row]

The layout of the work is that of Punica's and S-LoRA's kernels (Chen et al. 2023, Sheng et al. 2023): one product
makes the few numbers of the middle, a second one spreads them. Rows come in blocks of one adapter each, so that tensor
cores can take them. The middle is summed in a fixed order, so a row's result doesn't depend on the others.

Importing this takes Triton.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from lorary.adapters.kernel.on_gpu import Plan
    from lorary.adapters.layer.slots import SiteView

_INPUTS, _OUTPUTS = 64, 64  # at a time
# With few blocks, so many programs share the inputs of one: with one for each, most of the device would idle.
_PARTS, _FEW = 8, 64


def add_rows(view: SiteView, rank: int, plan: Plan, x: torch.Tensor, out: torch.Tensor) -> None:
    """Add each row's product for ``x`` [rows, ..., inputs] to ``out`` [rows, ..., outputs], in place.

    Args:
        view: the site; its ``a`` and ``b`` have the dtype of ``x`` and ``out``.
        rank: so much of the site's rank counts.
        plan: which vectors of ``x`` have which slot.
        x: contiguous.
        out: contiguous.
    """
    (_, inputs, width), outputs, stride = view.a.shape, view.b.shape[-1], view.a.stride(0)
    padded = max(16, triton.next_power_of_2(rank))  # tensor cores take no less
    parts = min(_PARTS if plan.blocks < _FEW else 1, triton.cdiv(inputs, _INPUTS))
    chunk = triton.cdiv(triton.cdiv(inputs, parts), _INPUTS) * _INPUTS
    middle = torch.empty(parts, plan.places, padded, dtype=torch.float32, device=x.device)
    at = plan.rows, plan.start, plan.slot
    sizes = {"M": plan.most, "R": padded, "PRECISION": "ieee"}  # TF32 would be another result than PyTorch's
    project_rows[plan.blocks, parts](
        x, view.a, middle, *at, plan.places, inputs, stride, width, rank, chunk, K=_INPUTS, **sizes
    )
    expand_rows[plan.blocks, triton.cdiv(outputs, _OUTPUTS)](
        middle, view.b, view.b if view.bias is None else view.bias, view.b if view.gain is None else view.gain, out,
        *at, plan.places, parts, outputs, stride, rank,
        N=_OUTPUTS, BIAS=view.bias is not None, GAIN=view.gain is not None, **sizes,
    )  # fmt: skip


@triton.jit(do_not_specialize=["places", "chunk"])  # or other batches would be compiled for again
def project_rows(
    x, a, middle, rows, start, slot,
    places, inputs, slot_stride, width, rank, chunk,
    M: tl.constexpr, K: tl.constexpr, R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``middle[part, place] = x[row] A[slot]`` of the inputs of one part; program (block, part).

    x [vectors, inputs], a [slots, inputs, width], middle [parts, places, R] float32.
    """
    block, part = tl.program_id(0), tl.program_id(1)
    place = tl.load(start + block) + tl.arange(0, M)
    ours = place < tl.load(start + block + 1)
    row = tl.load(rows + place, mask=ours, other=0)
    own = a + tl.load(slot + block) * slot_stride
    r = tl.arange(0, R)
    total = tl.full((M, R), 0.0, tl.float32)
    for first in range(part * chunk, tl.minimum(part * chunk + chunk, inputs), K):
        i = first + tl.arange(0, K)
        read = tl.load(x + row[:, None] * inputs + i[None, :], mask=ours[:, None] & (i < inputs)[None, :], other=0.0)
        factor = tl.load(
            own + i[:, None] * width + r[None, :], mask=(i < inputs)[:, None] & (r < rank)[None, :], other=0.0
        )
        total = tl.dot(read, factor, total, input_precision=PRECISION)
    kept = middle + (part.to(tl.int64) * places + place)[:, None] * R + r[None, :]
    tl.store(kept, total, mask=ours[:, None])


@triton.jit(do_not_specialize=["places", "parts"])
def expand_rows(
    middle, b, bias, gain, out, rows, start, slot,
    places, parts, outputs, slot_stride, rank,
    M: tl.constexpr, N: tl.constexpr, R: tl.constexpr, BIAS: tl.constexpr, GAIN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``out[row]`` with the gain, and ``middle[place] B[slot]`` and the bias added; program (block, outputs).

    b [slots, width, outputs], bias and gain [slots, outputs], all of one slot stride; out [vectors, outputs].
    """
    block = tl.program_id(0)
    place = tl.load(start + block) + tl.arange(0, M)
    ours = place < tl.load(start + block + 1)
    row = tl.load(rows + place, mask=ours, other=0)
    own = tl.load(slot + block) * slot_stride
    r = tl.arange(0, R)
    o = tl.program_id(1) * N + tl.arange(0, N)
    there = o < outputs
    hidden = tl.full((M, R), 0.0, tl.float32)
    for part in range(parts):
        hidden += tl.load(middle + (part * places + place)[:, None] * R + r[None, :], mask=ours[:, None], other=0.0)
    factor = tl.load(b + own + r[:, None] * outputs + o[None, :], mask=(r < rank)[:, None] & there[None, :], other=0.0)
    delta = tl.dot(hidden.to(factor.dtype), factor, input_precision=PRECISION)
    written = out + row[:, None] * outputs + o[None, :]
    result = tl.load(written, mask=ours[:, None] & there[None, :], other=0.0).to(tl.float32)
    if GAIN:
        result *= 1.0 + tl.load(gain + own + o, mask=there, other=0.0).to(tl.float32)[None, :]
    result += delta
    if BIAS:
        result += tl.load(bias + own + o, mask=there, other=0.0).to(tl.float32)[None, :]
    tl.store(written, result.to(out.dtype.element_ty), mask=ours[:, None] & there[None, :])
