"""A weighted sum of adapters as a new adapter: a PEFT checkpoint made from others, without their base."""

from __future__ import annotations

import secrets
import shutil
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir

import torch

from lorary.adapters.adapter import Adapter
from lorary.adapters.arguments import folder_path
from lorary.adapters.backbone.sources import Source
from lorary.adapters.blending.combination import Combination, Combiner, size
from lorary.adapters.blending.files import (
    blend_config,
    blend_manifest,
    blend_provenance,
    common_base,
    copy_tokenizer,
    write_files,
)
from lorary.adapters.blending.golden import add_golden
from lorary.adapters.blending.head import AVERAGE, averages, choose_owner, head_of
from lorary.adapters.blending.parts import Part
from lorary.adapters.layer.routing import Routing
from lorary.adapters.layer.slots import LowRank
from lorary.adapters.matching.keys import PEFT_PREFIX, wanted_tensors
from lorary.adapters.running.inference import Inference
from lorary.hub.checkpoint import Checkpoint, read_checkpoint
from lorary.hub.errors import (
    BlendError,
    NoEffectError,
    UsageError,
)
from lorary.hub.files.folders import new_folder
from lorary.hub.manifest import Numerics
from lorary.hub.reference import check_name
from lorary.hub.registry import Registry
from lorary.hub.values import Version

_CANCELLED = 1e-6  # of the largest update there was: what float32 leaves of updates that cancel out


def write_blend(
    parts: Sequence[Part], how: Combination, folder: Path, *, head: str | None = None, domain: str | None = None
) -> None:
    """Write the blend of ``parts`` into ``folder``: config, weights in float32, a manifest that tells its parents, and
    the tokenizer of the part that it takes its head from.

    Args:
        parts: at least one adapter.
        how: the kind of combination and its settings.
        folder: where to; it exists.
        head: see :func:`choose_owner`, or ``average``.
        domain: the blend's subject matter; by default that of the adapter that ``head`` names, else of all of them.

    Raises:
        BlendError: the adapters can't be combined so.
        BaseMismatchError: they belong to different bases.
        NoEffectError: nothing is left of them.
    """
    if not parts:
        raise UsageError("a blend needs at least one adapter with its weight, such as {'legal': 0.7, 'tone': 0.3}")
    owner = choose_owner(parts, head)
    base = common_base(parts)
    aligned = [replace(part, contents=part.contents.named_like(owner.contents)) for part in parts]
    sites, embeddings = _combine(aligned, how)
    config = blend_config(owner, aligned, sites, embeddings)
    tensors = {f"{PEFT_PREFIX}{name}": tensor for name, tensor in head_of(parts, owner, head).items()}
    tensors |= {f"{PEFT_PREFIX}{name}": tensor for name, tensor in _common_copies(aligned).items()}
    for name, site in sites.items():
        ends = wanted_tensors(config, embedding=name in embeddings)
        values = (site.a, site.b, site.bias if site.bias is not None else torch.zeros(site.b.shape[0], device="cpu"))
        tensors |= {f"{PEFT_PREFIX}{name}{end}": value for end, value in zip(ends, values, strict=False)}
    write_files(folder, config, tensors)
    copy_tokenizer(owner, folder)
    told = blend_provenance(parts, how, AVERAGE if averages(parts, head) else owner.title)
    domain = domain or (owner.domain if head == owner.name else None)
    blend_manifest(owner, parts, base, domain, told).write(folder)


@dataclass
class Blend:
    """A blend's checkpoint, and the folder it lies in if that isn't one to keep."""

    source: Source
    scratch: Path | None

    def last_as_long_as(self, owner: object) -> None:
        """Let the files go when ``owner`` does, rather than at the end of the :func:`kept_blend` block."""
        if self.scratch is not None:
            weakref.finalize(owner, shutil.rmtree, self.scratch, ignore_errors=True)
            self.scratch = None


@contextmanager
def kept_blend(
    parts: Sequence[Part],
    how: Combination,
    name: str,
    output: str | Path | None,
    *,
    head: str | None = None,
    domain: str | None = None,
) -> Iterator[Blend]:
    """Make a blend (:func:`write_blend`), in ``output`` if the block ends well, else for the block's time only."""
    check_name(name)
    scratch = Path(gettempdir()) / f"lorary-blend-{secrets.token_hex(8)}"
    folder = scratch if output is None else folder_path(output)
    with new_folder(folder) as draft:
        write_blend(parts, how, draft, head=head, domain=domain)
    try:
        checkpoint = read_checkpoint(folder, shown=name if output is None else None)
        blend = Blend(Source(checkpoint, name, checkpoint.source), scratch if output is None else None)
        yield blend
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if blend.scratch is not None:
        shutil.rmtree(blend.scratch, ignore_errors=True)


def settle_blend(
    blend: Blend,
    parts: Sequence[Part],
    registry: Registry | None,
    inference: Inference,
    numerics: Numerics,
    adapter: Adapter,
    routing: Routing,
) -> str:
    """What is left to do for a blend that is proven and not yet published: golden logits, and the registry's entry.

    Returns the reference that it is known by: its version in the registry, or where it came from.
    """
    adapter.checkpoint = add_golden(blend.source.checkpoint, parts, inference, routing, numerics)
    blend.last_as_long_as(adapter)
    if registry is None:
        return blend.source.reference
    return register_blend(adapter.checkpoint, parts, registry, adapter.name).reference


def register_blend(checkpoint: Checkpoint, parts: Sequence[Part], registry: Registry, name: str) -> Version:
    """Put a blend into the catalogue, its parents being those of its parts that are there. Raises as ``add`` does."""
    parents = dict.fromkeys(part.version.reference for part in parts if part.version is not None)
    return registry.add(checkpoint, name=name, parents=parents, strategy="blend")


def _combine(parts: Sequence[Part], how: Combination) -> tuple[dict[str, LowRank], frozenset[str]]:
    """The combined update at each site that any part has, and which sites are embeddings."""
    combiner = Combiner(how, max(part.contents.rank for part in parts))
    embeddings = frozenset(name for part in parts for name in part.contents.embeddings)
    sites: dict[str, LowRank] = {}
    for name in sorted({name for part in parts for name in part.contents.sites}):
        having = [part for part in parts if name in part.contents.sites]
        updates = [part.contents.sites[name] for part in having]
        sizes = {
            (update.a.shape[1], update.b.shape[0], name in part.contents.embeddings)
            for part, update in zip(having, updates, strict=True)
        }
        if len(sizes) > 1:
            found = " and ".join(f"{inputs} to {outputs}" for inputs, outputs, _ in sorted(sizes))
            raise BlendError(f"at {name!r} the adapters map {found} numbers; they were trained on different models")
        sites[name] = combiner.combine(updates, [part.weight for part in having], name)
    if embeddings and any(site.bias is not None for site in sites.values()):
        raise BlendError("one adapter has lora_bias and another an adapted embedding; PEFT's format can't hold both")
    largest = max(abs(part.weight) * size(site) for part in parts for site in part.contents.sites.values())
    if all(size(site) <= _CANCELLED * largest for site in sites.values()):
        raise NoEffectError("the blend's weights are all zero: the adapters cancel out, or the density keeps nothing")
    return sites, embeddings


def _common_copies(parts: Sequence[Part]) -> dict[str, torch.Tensor]:
    """The base's own parameters, which loading holds against the backbone's."""
    copies: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, tensor in part.contents.copies.items():
            if name in copies and not torch.equal(copies[name], tensor):
                raise BlendError(
                    f"the adapters carry different values of the base's own {name!r}; their bases aren't the same"
                )
            copies[name] = tensor
    return copies
