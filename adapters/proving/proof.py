"""Does an adapter take effect, and is it the one that was trained: asked by running it, not by trusting its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from lorary.adapters.adapter import Adapter
from lorary.adapters.base.device import dtype_name
from lorary.adapters.base.modules import LinearShape, ModuleMap, linear_shape, output_scale
from lorary.adapters.layer.dora import unfold_magnitude
from lorary.adapters.layer.routing import Routing
from lorary.adapters.layer.slots import LowRank
from lorary.adapters.matching.keys import Site
from lorary.adapters.proving.golden import compare_golden, condense, effect_cosine, read_golden
from lorary.adapters.running.inference import Inference, tensors_of
from lorary.adapters.running.tail import Tails
from lorary.hub.errors import NoEffectError
from lorary.hub.manifest import Manifest, Numerics

_PROBE_TOKENS = 8


@dataclass(frozen=True)
class GoldenReport:
    """What comparing golden logits came to.

    ``matches`` is None where there are none or the arithmetic is another than in training; ``difference`` is relative
    (:func:`lorary.adapters.proving.golden.compare_golden`), ``cosine`` that of the adapter's effect.
    """

    matches: bool | None
    difference: float | None
    cosine: float | None
    note: str


def demand_effect(inference: Inference, routing: Routing, source: str, tails: Tails) -> None:
    """Run a few tokens with the adapter of ``routing`` and hold the output against the bare backbone's.

    If its last module alone moves the logits, as it nearly always does, only the end of a pass is run
    (:mod:`lorary.adapters.running.tail`). Else all of it is: one pass, since what the bare backbone makes of the
    probe's own tokens is kept; an adapter that has no effect on those is given its own golden row before it is refused.
    All of it is run as well where its factors are so large that the pass might overflow.

    Raises:
        NoEffectError: every tensor of the two outputs is the same, bit for bit, or the adapter's aren't numbers.
    """
    adapter = routing.adapters[0]
    golden_rows = adapter.manifest.golden_rows if adapter and adapter.manifest else ()
    needs = adapter.content.needs if adapter is not None and adapter.content.tame else {}
    shown = bool(needs) and tails.differs(routing, needs)
    # A pass learns which modules share an input, and later ones compute in another order for it. The first on an arena
    # is one of ours, so that all of a user's calls give the same, bit for bit.
    if shown and needs.keys() <= routing.arena.same_input.keys():
        return
    vocabulary = inference.vocabulary
    if _has_effect(inference, routing, probe_row((), vocabulary), source):
        return
    if golden_rows and _has_effect(inference, routing, probe_row(golden_rows, vocabulary), source):
        return
    raise NoEffectError(
        f"{source}: the backbone answers the same with it as without; its layers aren't used for this kind of input, "
        "or its weights are too small for the backbone's dtype, or the one they are kept in"
    )


def _has_effect(inference: Inference, routing: Routing, row: Sequence[int], source: str) -> bool:
    bare = inference.bare_outputs(row)
    outputs = tensors_of(inference.run(row, routing))
    for name, tensor in outputs.items():
        if bool(torch.isfinite(bare[name]).all()) and not bool(torch.isfinite(tensor).all()):
            raise NoEffectError(
                f"{source}: with it the backbone answers NaN or infinity; its weights or its scale are too large for "
                f"{tensor.dtype}"
            )
    return any(not torch.equal(tensor, bare[name]) for name, tensor in outputs.items())


def settle_head(inference: Inference, routing: Routing, adapter: Adapter) -> None:
    """Find out whether the adapter's head can read a pass of the body made for all heads at once.

    Some heads ask their body for more than a plain pass (Longformer's for global attention on the first token); theirs
    is then run through the whole task model.
    """
    if adapter.head is None or not adapter.head.reads_body_output:
        return
    golden_rows = adapter.manifest.golden_rows if adapter.manifest else ()
    row = probe_row(golden_rows, inference.vocabulary)
    if hasattr(adapter.head.model, "classification_head"):
        row.append(adapter.head.model.config.eos_token_id)  # where the classifiers of encoder-decoders read
    separator = getattr(adapter.head.model.config, "sep_token_id", None)
    if adapter.task == "question-answering" and separator is not None:
        row = [*(token for token in row if token != separator), separator]
        row[2:2] = [separator, separator]  # Longformer's tells the question by them
    shared = inference.logits(row, routing)
    adapter.head.reads_body_output = False
    own = inference.logits(row, routing)
    # The same arithmetic twice: beyond rounding, a difference means that the head asked for something else.
    adapter.head.reads_body_output = torch.allclose(shared, own, atol=1e-4, rtol=1e-3)


def probe_row(golden_rows: Sequence[Sequence[int]], vocabulary: int) -> list[int]:
    """A few token ids to probe with: of the adapter's own golden rows, or spread over the vocabulary."""
    if golden_rows:
        return list(golden_rows[0][:_PROBE_TOKENS])
    return [int(vocabulary * (index + 1) / (_PROBE_TOKENS + 1)) for index in range(_PROBE_TOKENS)]


def check_golden(inference: Inference, routing: Routing, adapter: Adapter, numerics: Numerics) -> GoldenReport:
    """Recompute an adapter's golden logits through the slots it is served from.

    Raises:
        GoldenMismatchError: in the arithmetic of training, they differ by more than the tolerance.
    """
    without = routing.without_updates()
    return judge_golden(
        adapter.manifest,
        read_golden(adapter.checkpoint),
        numerics,
        lambda row: inference.logits(row, routing),
        lambda row: inference.logits(row, without),
        dtype_name(routing.arena.layout.dtype),
    )


def judge_golden(
    manifest: Manifest | None,
    golden: Sequence[torch.Tensor] | None,
    numerics: Numerics,
    logits: Callable[[Sequence[int]], torch.Tensor],
    bare: Callable[[Sequence[int]], torch.Tensor],
    kept: str | None = None,
) -> GoldenReport:
    """Hold golden logits against those computed now; ``logits`` and ``bare`` give a token row's, with and without it.

    ``kept`` is the dtype that the adapter has in its slot; the backbone's unless given.

    Raises:
        GoldenMismatchError: in the arithmetic of training, they differ by more than the tolerance.
    """
    if manifest is None or golden is None:
        return GoldenReport(None, None, None, "carries no golden logits")
    actual = [condense(manifest.task, logits(row)) for row in manifest.golden_rows]
    if manifest.numerics == numerics:
        return GoldenReport(True, compare_golden(golden, actual, numerics, kept), None, "golden logits match")
    without = [condense(manifest.task, bare(row)) for row in manifest.golden_rows]
    note = f"trained on {manifest.numerics}, loaded on {numerics}: golden logits are compared, not judged"
    return GoldenReport(None, None, effect_cosine(golden, actual, without), note)


def resident_tensors(
    model: torch.nn.Module, modules: ModuleMap, routing: Routing, adapter: Adapter
) -> dict[str, torch.Tensor]:
    """An adapter's tensors as they are served, under its checkpoint's keys: float32 on the CPU, scale taken out."""
    tensors: dict[str, torch.Tensor] = {}
    for site in adapter.plan.sites:
        held = routing.arena.read(routing.slots[0], site.path, site.rank)
        tensors |= _site_tensors(model.get_submodule(site.path), modules.site(site.path), site, held)
    parameters = dict(adapter.head.model.named_parameters()) if adapter.head else {}
    tensors |= {key: parameters[name].detach().float().cpu() for name, key in adapter.plan.head.items()}
    for site in adapter.plan.head_sites:
        assert adapter.head is not None
        layer = adapter.head.model.get_submodule(site.path)
        held = LowRank(layer.a.float().cpu(), layer.b.float().cpu(), _host(layer.bias), 1.0, _host(layer.gain))
        tensors |= _site_tensors(layer.base_layer, linear_shape(layer.base_layer), site, held)
    for path, keys in adapter.plan.overrides.items():
        tensors |= {key: adapter.overrides[path].parameter(part) for part, key in keys.items()}
    return tensors


def _host(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.float().cpu()


def _site_tensors(
    module: torch.nn.Module, shape: LinearShape | None, site: Site, held: LowRank
) -> dict[str, torch.Tensor]:
    assert shape is not None
    scale = site.scale * output_scale(module, shape)
    plain = replace(held, b=held.b / scale, bias=None if held.bias is None else held.bias / scale, scale=scale)
    if site.magnitude is not None:
        b, magnitude = unfold_magnitude(module, shape, plain, norm_scale=site.scale)
        return {site.a: plain.a, site.b: b, site.magnitude: magnitude}
    tensors = {site.a: plain.a, site.b: plain.b}
    if site.bias is not None and plain.bias is not None:
        tensors[site.bias] = plain.bias
    return tensors
