"""Taking adapters in: from a reference to a name that serves, with everything that is demanded on the way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from lorary.adapters.adapter import Adapter, Fit
from lorary.adapters.backbone.sources import Source, demand_stated, find_checkpoint
from lorary.adapters.base.identity import match_base
from lorary.adapters.base.modules import ModuleMap
from lorary.adapters.base.quantization import READ_BY_MODELS
from lorary.adapters.heads.masked import MaskedHead
from lorary.adapters.heads.of_base import HeadsOfBase
from lorary.adapters.layer.compiled import eagerly
from lorary.adapters.layer.lora import wrap
from lorary.adapters.layer.routing import Routing
from lorary.adapters.layer.slots import Arena, LowRank
from lorary.adapters.matching.fitting import Fitter
from lorary.adapters.matching.support import check_supported
from lorary.adapters.proving.proof import demand_effect, probe_row, settle_head
from lorary.adapters.running.inference import Inference
from lorary.adapters.running.layout import rows_come_first
from lorary.adapters.running.tail import Tails
from lorary.adapters.text.tokenizers import Tokenizers
from lorary.adapters.through_peft.adapter import PeftAdapter, build_peft_adapter
from lorary.adapters.through_peft.book import PeftBook
from lorary.adapters.through_peft.slots_or_peft import runs_through_peft
from lorary.adapters.tiers.blocks import pack
from lorary.adapters.tiers.content import Parts
from lorary.adapters.tiers.residency import Residency
from lorary.adapters.tiers.weights import Weights, WeightsReader
from lorary.adapters.values import LoadedAdapter
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import UsageError
from lorary.hub.manifest import BaseIdentity
from lorary.hub.registry import Registry


class Files:
    """The :class:`~lorary.adapters.tiers.arrivals.Origin` of a backbone's adapters: their checkpoints' files."""

    def __init__(
        self,
        inference: Inference,
        modules: ModuleMap,
        dtype: torch.dtype,
        kept: torch.dtype,
        masked: MaskedHead,
        of_base: HeadsOfBase,
    ) -> None:
        self.reader = WeightsReader()
        self.fitter = Fitter(inference, modules, dtype, kept, masked, of_base)
        self.inference = inference
        vocabulary = inference.vocabulary
        self.tokenizers = Tokenizers(inference.tokenizer, vocabulary)
        self._tails = Tails(inference, probe_row((), vocabulary))
        self._reads_body_output: dict[type, bool] = {}  # by the class of a head's task model, whose code decides it
        self._settled = 0  # sites that the layout of rows was asked of
        self._settling = threading.Lock()

    def open(self, adapter: Adapter) -> AbstractContextManager[Weights]:
        """The adapter's tensors, read again and held against its digest."""
        return self.reader.read_again(adapter.checkpoint, adapter.digest)

    def factors(self, adapter: Adapter, weights: Weights) -> Mapping[str, LowRank]:
        """Its factors by site."""
        return self.fitter.factors(adapter, weights)

    def parts(self, adapter: Adapter, weights: Weights) -> Parts:
        """What it has beside its slot."""
        parts = self.fitter.parts(adapter, weights)
        if parts.head is not None:
            known = self._reads_body_output.get(type(parts.head.model))
            parts.head.reads_body_output = parts.head.reads_body_output if known is None else known
        return parts

    def prove(self, adapter: Adapter, routing: Routing) -> None:
        """Raise unless it takes effect in the slot that it was put in."""
        with eagerly():
            demand_effect(self.inference, routing, adapter.source, self._tails)
            if adapter.head is not None and type(adapter.head.model) not in self._reads_body_output:
                settle_head(self.inference, routing, adapter)
                self._reads_body_output[type(adapter.head.model)] = adapter.head.reads_body_output
            self._settle_rows(routing.arena.layout.sites)

    def _settle_rows(self, sites: Collection[str]) -> None:
        """Find out whether adapters can share a pass, again whenever they reach new modules."""
        with self._settling:
            if self.inference.rows_first and len(sites) != self._settled:
                self.inference.rows_first = rows_come_first(self.inference, sites)
                self._settled = len(sites)


class Intake:
    """Loads adapters onto one backbone.

    Args:
        files: the backbone's way to checkpoints' files.
        residency: where adapters are kept that fit into slots.
        peft: the books of those that run through PEFT.
        identity: the backbone's.
        quantization: the backbone's.
        registry: where references are looked up; the default one unless given.
    """

    def __init__(
        self,
        files: Files,
        residency: Residency,
        peft: PeftBook,
        identity: BaseIdentity,
        quantization: str,
        registry: Registry | None,
    ) -> None:
        self._files = files
        self._residency = residency
        self._peft = peft
        self._identity = identity
        self._quantization = quantization
        self._registry = registry
        self._ahead: dict[int, ThreadPoolExecutor] = {}  # by process: a fork has none of its parent's threads
        self.released = False

    @property
    def registry(self) -> Registry:
        """Where references are looked up."""
        return self._registry or Registry()

    def load(
        self,
        reference: str | Path | Checkpoint,
        name: str | None = None,
        *,
        allow_base_mismatch: bool = False,
        lazy: bool = False,
    ) -> LoadedAdapter:
        """See :meth:`lorary.adapters.Backbone.load`."""
        source = find_checkpoint(reference, self.registry)
        return self.take(source, name, allow_base_mismatch=allow_base_mismatch, lazy=lazy)

    def load_from(self, reference: str, name: str, registry: Registry) -> LoadedAdapter:
        """As :meth:`load`, with the reference looked up in this registry."""
        return self.take(find_checkpoint(reference, registry), name)

    def take(
        self,
        source: Source,
        name: str | None = None,
        *,
        allow_base_mismatch: bool = False,
        lazy: bool = False,
        settle: Callable[[Adapter, Routing], str] | None = None,
    ) -> LoadedAdapter:
        """Load a checkpoint that was found; ``settle`` is called between its proof and its publication.

        It returns the reference that the adapter is known by from then on.

        Raises:
            UsageError: the backbone was released; and all that loading raises.
        """
        if self.released:
            raise UsageError("this backbone was released, and its model is as it was before; open another one")
        started = time.perf_counter()
        checkpoint, reference = source.checkpoint, source.reference
        notes = match_base(checkpoint, self._identity, self._quantization, allow_mismatch=allow_base_mismatch)
        check_supported(checkpoint)
        inference = self._files.inference
        if runs_through_peft(checkpoint, inference.model, self._files.fitter.modules):
            return _loaded(self._through_peft(source, name or source.name), reference, notes, started)
        fit = self._files.fitter.fit(checkpoint)
        notes += _idle(fit)
        tokenizer = self._files.tokenizers.of(checkpoint, inference.vocabulary)
        for path in fit.plan.overrides:
            wrap(inference.model, path, self._residency.home)

        def adapter_of(digest: str) -> Adapter:
            return Adapter(name or source.name, checkpoint, fit, self._residency.content(digest, fit.task), tokenizer)

        if lazy and source.digest is not None:
            adapter = adapter_of(source.digest)
            self._publish(adapter)
        else:
            with self._files.reader.read(checkpoint) as weights:
                demand_stated(source, weights.digest)
                adapter = adapter_of(weights.digest)
                if lazy:
                    self._publish(adapter)
                else:
                    with self._residency.lease([adapter], replacing=adapter.name, weights=weights) as routing:
                        reference = settle(adapter, routing) if settle else reference
                        self._publish(adapter)
        return _loaded(adapter, reference, notes, started)

    def _through_peft(self, source: Source, name: str) -> PeftAdapter:
        """Load an adapter that slots can't hold; whatever had its name serves until then."""
        with self._files.reader.read(source.checkpoint, floats=False) as weights:
            demand_stated(source, weights.digest)
            adapter = build_peft_adapter(
                weights,
                name=name,
                inference=self._files.inference,
                dtype=self._files.fitter.dtype,
                of_base=self._files.fitter.of_base,
                tokenizers=self._files.tokenizers,
                masked=self._files.fitter.masked,
            )
        with eagerly():
            adapter.demand_effect()
        with self._residency.lock:
            self._peft.publish(adapter)
            if name in self._residency.names():
                self._residency.withdraw(name)
        return adapter

    def _publish(self, adapter: Adapter) -> None:
        """Let an adapter in the slots be what its name stands for; at no moment does the name stand for nothing."""
        with self._residency.lock:
            self._residency.publish(adapter)
            self._peft.withdraw(adapter.name)

    @contextmanager
    def factors(self, adapter: Adapter) -> Iterator[Mapping[str, LowRank]]:
        """An adapter's factors by site, read again from its files; they are gone when the block ends.

        Raises:
            ChangedFilesError: the files aren't what was loaded any more.
            CheckpointError: they can't be read.
        """
        with self._files.open(adapter) as weights:
            yield self._files.factors(adapter, weights)

    @contextmanager
    def unrounded(self, adapter: Adapter, routing: Routing) -> Iterator[Routing]:
        """The ``routing`` of one adapter, on an arena of its own where slots keep narrower numbers than products need.

        What is written about an adapter (golden logits, a merged model) is about its files, not about what these slots
        made of it. Raises as :meth:`factors`.
        """
        layout = routing.arena.layout
        if layout.dtype is layout.computes:
            yield routing
            return
        arena = Arena(layout.sites, layout.rank, slots=1, dtype=layout.computes, home=routing.home)
        with self.factors(adapter) as factors:
            arena.place(1, pack(arena.layout, factors))
        yield Routing(arena, [adapter], [1])

    def prefetch(self, names: Sequence[str]) -> dict[str, Future[None]]:
        """See :meth:`lorary.adapters.Backbone.prefetch`."""
        adapters = self._residency.resolve(names)
        pool = self._ahead.get(os.getpid())
        if pool is None:
            pool = self._ahead[os.getpid()] = ThreadPoolExecutor(2, thread_name_prefix="lorary-prefetch")
        # More than there are slots would only push one another out again.
        return {
            name: pool.submit(self._bring_ahead, adapter, place < self._residency.slots)
            for place, (name, adapter) in enumerate(zip(names, adapters, strict=True))
            if adapter is not None
        }

    def _bring_ahead(self, adapter: Adapter, to_slot: bool) -> None:
        if threading.main_thread().is_alive():  # at the interpreter's exit what was asked for ahead is dropped
            self._residency.prefetch(adapter, to_slot=to_slot)


def _loaded(adapter: Adapter | PeftAdapter, reference: str, notes: tuple[str, ...], started: float) -> LoadedAdapter:
    return LoadedAdapter(
        name=adapter.name,
        reference=reference,
        digest=adapter.digest,
        task=adapter.task,
        labels=tuple(adapter.labels) if adapter.labels else None,
        rank=adapter.rank,
        notes=notes,
        seconds=time.perf_counter() - started,
    )


def _idle(fit: Fit) -> tuple[str, ...]:
    """A line on what an adapter learned for weights that its model reads without calling their modules, if any."""
    names = {site.path.rpartition(".")[2] for site in fit.plan.sites}
    return tuple(
        f"what it learned for {name!r} has no effect: the model multiplies with that weight by itself, under PEFT too"
        for name in READ_BY_MODELS
        if name in names
    )
