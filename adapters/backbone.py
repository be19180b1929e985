"""Backbone: one frozen base model, loaded once, and every adapter that runs on it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from lorary.adapters.adapter import Adapter, build_adapter
from lorary.adapters.compiled import compile_body, eagerly
from lorary.adapters.device import dtype_name
from lorary.adapters.generate import PromptRow
from lorary.adapters.identity import body_of, identify, match_base
from lorary.adapters.inference import Inference, can_generate
from lorary.adapters.layout import rows_come_first
from lorary.adapters.loading import is_encoder, load_base
from lorary.adapters.lora import wrap
from lorary.adapters.modules import demand_bare, map_modules, serialise_changing_rope
from lorary.adapters.peft_adapter import PeftAdapter, build_peft_adapter
from lorary.adapters.peft_book import PeftBook, on_slots, only_one, share_out
from lorary.adapters.predict import Row
from lorary.adapters.proof import GoldenReport, check_golden, demand_effect, probe_row, resident_tensors, settle_head
from lorary.adapters.quantization import guard_cpu, quantization_of
from lorary.adapters.residency import Residency
from lorary.adapters.routing import RoutedModel, routed
from lorary.adapters.slots import SiteSpec
from lorary.adapters.sources import find_checkpoint
from lorary.adapters.support import check_supported
from lorary.adapters.values import LoadedAdapter, Stats
from lorary.adapters.way import runs_through_peft
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import UsageError
from lorary.hub.manifest import BaseIdentity, Numerics
from lorary.hub.registry import Registry


class Backbone:
    """One base model and the adapters loaded on it.

    Make one with :meth:`from_pretrained` or :meth:`from_model`. Its methods may be called from several threads: the
    choice of adapters belongs to each call, and a call finishes on the versions that it began with.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        identity: BaseIdentity,
        slots: int = 16,
        registry: Registry | None = None,
        random_parameters: Collection[str] = (),
    ) -> None:
        if slots < 1:
            raise UsageError(f"slots={slots}: expected at least 1")
        demand_bare(model)
        self.body = body_of(model)
        # A classifier's own head isn't the backbone's: each adapter brings one. A language model's is everybody's.
        self.model: Any = model if can_generate(model) and not is_encoder(model.config) else self.body
        self.tokenizer = tokenizer
        self.identity = identity
        self.quantization = quantization_of(model)
        guard_cpu(self.model)
        serialise_changing_rope(self.body)
        self.model.eval()
        self.model.requires_grad_(False)
        embedding = self.body.get_input_embeddings().weight
        self.device, self.dtype = embedding.device, embedding.dtype
        self._registry = registry
        self._inference = Inference(self.model, self.body, tokenizer, self.device)
        self._sites_settled = 0
        self._modules = map_modules(self.model, self.body, random_parameters)
        self._residency = Residency(slots, self.dtype, self._open_site)
        self._peft = PeftBook(self.body)
        if self.quantization != "none":
            # bitsandbytes sets up a layer's state in its first forward, and several threads at once get it wrong.
            self._inference.run(probe_row((), embedding.shape[0]), None)

    @classmethod
    def from_pretrained(
        cls,
        base: str,
        *,
        quantization: str = "none",
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: str | dict[str, Any] | None = None,
        revision: str | None = None,
        slots: int = 16,
        registry: Registry | None = None,
    ) -> Backbone:
        """Load a base model from a folder, the local cache or the Hub (arguments as :func:`load_base`).

        Args:
            base: a folder or a Hub id.
            quantization: ``none``, ``nf4`` or ``int8``.
            dtype: float32 on the CPU and bfloat16 on CUDA unless given.
            device: the first CUDA device unless given, else the CPU.
            device_map: to spread the model over several devices.
            revision: a branch, tag or commit.
            slots: how many adapters are on the device at once; more can be loaded and wait on the host.
            registry: where references such as ``finance-tone@prod`` are looked up; the default one unless given.

        Raises:
            BaseNotFoundError: the base can't be found or isn't a model.
        """
        loaded = load_base(
            base, quantization=quantization, dtype=dtype, device=device, device_map=device_map, revision=revision
        )
        return cls(
            loaded.model,
            loaded.tokenizer,
            identity=loaded.identity,
            slots=slots,
            registry=registry,
            random_parameters=loaded.new_parameters,
        )

    @classmethod
    def from_model(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        identity: BaseIdentity | None = None,
        slots: int = 16,
        registry: Registry | None = None,
    ) -> Backbone:
        """A backbone around a transformers model that is in memory already; the model is taken over, not copied."""
        base_id = str(getattr(model.config, "_name_or_path", "") or "in-memory")
        return cls(
            model, tokenizer, identity=identity or identify(model, tokenizer, base_id), slots=slots, registry=registry
        )

    # Loading

    def load(
        self, reference: str | Path | Checkpoint, name: str | None = None, *, allow_base_mismatch: bool = False
    ) -> LoadedAdapter:
        """Load an adapter: validated whole, staged, shown to take effect, then published under its name.

        Whatever was loaded under that name serves until then, and goes on serving when anything fails.

        Args:
            reference: ``name``, ``name@3``, ``name@alias``, ``user/repo[@revision]``, a folder, or a checkpoint.
            name: the name to load it under; the adapter's own unless given.
            allow_base_mismatch: load an adapter of another base all the same.

        Raises:
            UnknownReferenceError: there is no such adapter.
            CheckpointError: its files are damaged, don't fit, or don't act (the subclass says which).
            BaseMismatchError: it was trained on another base.
            SlotsFullError: every slot is pinned or in use.
        """
        started = time.perf_counter()
        source = find_checkpoint(reference, self._registry or Registry())
        checkpoint = source.checkpoint
        notes = match_base(checkpoint, self.identity, self.quantization, allow_mismatch=allow_base_mismatch)
        check_supported(checkpoint)
        adapter: Adapter | PeftAdapter
        if runs_through_peft(checkpoint, self.model, self._modules):
            adapter = self._load_through_peft(checkpoint, name or source.name)
        else:
            adapter = self._load_into_slot(checkpoint, name or source.name)
        return LoadedAdapter(
            name=adapter.name,
            reference=source.reference,
            digest=adapter.digest,
            task=adapter.task,
            labels=tuple(adapter.labels) if adapter.labels else None,
            rank=adapter.rank,
            notes=notes,
            seconds=time.perf_counter() - started,
        )

    def _load_into_slot(self, checkpoint: Checkpoint, name: str) -> Adapter:
        adapter = build_adapter(
            checkpoint,
            name=name,
            model=self.model,
            body=self.body,
            modules=self._modules,
            device=self.device,
            dtype=self.dtype,
            pad_token=self._inference.pad_id,
        )
        for path in adapter.overrides:
            wrap(self.model, path)
        with self._residency.lease([adapter], replacing=adapter.name) as routing, eagerly():
            demand_effect(self._inference, routing, checkpoint.source)
            settle_head(self._inference, routing, adapter)
            self._settle_rows()
            self._residency.publish(adapter)
        self._peft.withdraw(adapter.name)
        return adapter

    def _load_through_peft(self, checkpoint: Checkpoint, name: str) -> PeftAdapter:
        adapter = build_peft_adapter(checkpoint, name=name, inference=self._inference, dtype=self.dtype)
        with eagerly():
            adapter.demand_effect()
        self._peft.publish(adapter)
        if adapter.name in self._residency.names():
            self._residency.withdraw(adapter.name)
        return adapter

    def _resolve(self, names: Sequence[str | None]) -> list[Adapter | PeftAdapter | None]:
        """The adapters that these names stand for, each name looked up once."""
        own = {name: found for name in set(names) if (found := self._peft.find(name)) is not None}
        others = [name for name in names if name not in own]
        slotted = dict(zip(others, self._residency.resolve(others), strict=True))
        return [own[name] if name in own else slotted[name] for name in names]

    def swap(
        self, name: str, reference: str | Path | Checkpoint, *, allow_base_mismatch: bool = False
    ) -> LoadedAdapter:
        """Let ``name`` stand for another version; calls in flight finish on the one they began with.

        Raises:
            UnknownReferenceError: nothing is loaded under ``name``; and all that :meth:`load` raises.
        """
        self._resolve([name])
        return self.load(reference, name, allow_base_mismatch=allow_base_mismatch)

    def unload(self, name: str) -> None:
        """Forget an adapter; calls in flight finish on it."""
        if not self._peft.withdraw(name):
            self._residency.withdraw(name)

    def pin(self, name: str) -> None:
        """Keep an adapter on the device, whatever else is loaded; one that runs through PEFT always is."""
        if self._peft.find(name) is None:
            self._residency.pin(name, True)

    def unpin(self, name: str) -> None:
        """Let an adapter be moved to the host again when slots run short."""
        if self._peft.find(name) is None:
            self._residency.pin(name, False)

    def compile(self, **options: Any) -> None:
        """Compile the backbone with ``torch.compile``; loading, swapping and mixing adapters don't compile it again.

        Args:
            options: those of ``torch.compile``; ``mode="reduce-overhead"`` records CUDA graphs.

        Raises:
            UsageError: the backbone is spread over several devices.
        """
        compile_body(self.body, lambda: self._residency.arena, options)

    # Using

    @contextmanager
    def using(self, adapter: str | Sequence[str | None] | None) -> Iterator[Any]:
        """Within the block, in this thread, calls of the model use ``adapter`` (or one per row of the batch).

        Yields the model to call: the adapter's task model where it has a head, the backbone's own model otherwise.
        """
        names = [adapter] if adapter is None or isinstance(adapter, str) else list(adapter)
        adapters = self._resolve(names)
        own = only_one(adapters)
        if own is not None:
            with own.routing(len(names)).until_closed() as alone, routed(alone):
                yield RoutedModel(own.view, alone)
            return
        with self._residency.lease(on_slots(adapters)) as routing, routed(routing):
            head = routing.adapters[0].head if routing.uniform and routing.adapters[0] else None
            yield RoutedModel(head.model if head else self.model, routing)

    def predict(
        self,
        inputs: Row | Sequence[Row],
        adapter: str | Sequence[str | None] | None = None,
        *,
        batch_size: int = 32,
        **params: Any,
    ) -> Any:
        """Predict with one adapter for all rows or one per row, in the shapes of ``transformers.pipeline``.

        Args:
            inputs: a text, a mapping (``{"text", "text_pair"}`` or the adapter's own columns), or a list of them.
            adapter: a name, or a name (None: the bare backbone) for each row.
            batch_size: rows per pass.
            params: the pipeline's own parameters (``top_k``, ``aggregation_strategy``, ...); for text generation those
                of ``generate``.

        Returns:
            For a list, one prediction per row; for a single row, what the task's pipeline returns for one.

        Raises:
            UnknownReferenceError: an adapter that isn't loaded.
            UsageError: rows and adapters of different number, or a row that has no text.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}: expected at least 1")
        single = isinstance(inputs, (str, Mapping))
        rows: list[Row] = [cast(Row, inputs)] if single else cast(list[Row], list(inputs))
        # Looked up once, so that a swap in the meantime doesn't split the call between two versions.
        adapters = self._resolve(_per_row(adapter, len(rows)))
        predictions: list[Any] = []
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            predictions.extend(self._predict(rows[part], adapters[part], params))
        if not single:
            return predictions
        # The text-classification pipeline alone returns a list for one text; the others one prediction.
        task = adapters[0].task if adapters[0] else None
        wrap_one = task == "text-classification" and isinstance(inputs, str) and "top_k" not in params
        return predictions if wrap_one else predictions[0]

    def generate(
        self,
        prompts: PromptRow | Sequence[PromptRow],
        adapter: str | Sequence[str | None] | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Generate text with one adapter for all prompts or one per prompt, in one batch.

        Args:
            prompts: a text or a list of texts (or of conversations, each a list of ``{"role", "content"}``); each is
                put the way its adapter was trained.
            adapter: a name, or a name (None: the bare backbone) for each prompt.
            generate_kwargs: transformers' own (``max_new_tokens``, ``num_beams``, ``do_sample``, ...).

        Returns:
            The new text of each prompt (a list of them with ``num_return_sequences``); for a single prompt, its text.

        Raises:
            UsageError: the backbone has no language-modelling head, or a prompt is empty.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Mapping))
        rows: list[PromptRow] = [cast(PromptRow, prompts)] if single else cast(list[PromptRow], list(prompts))
        if not rows:
            return []
        texts = self._generate(rows, self._resolve(_per_row(adapter, len(rows))), generate_kwargs)
        per_prompt = len(texts) // len(rows)
        grouped = texts if per_prompt == 1 else [texts[i : i + per_prompt] for i in range(0, len(texts), per_prompt)]
        return grouped[0] if single else grouped

    def _predict(self, rows: list[Row], adapters: Sequence[Adapter | PeftAdapter | None], params: Any) -> list[Any]:
        def slotted(places: list[int], own: list[Adapter | None]) -> list[Any]:
            with self._residency.lease(own) as routing:
                return self._inference.predict([rows[place] for place in places], routing, params)

        return share_out(adapters, slotted, lambda places, own: own.predict([rows[place] for place in places], params))

    def _generate(
        self, rows: list[PromptRow], adapters: Sequence[Adapter | PeftAdapter | None], kwargs: dict[str, Any]
    ) -> list[str]:
        def slotted(places: list[int], own: list[Adapter | None]) -> list[str]:
            with self._residency.lease(own) as routing:
                return self._inference.generate([rows[place] for place in places], routing, kwargs)

        return share_out(adapters, slotted, lambda places, own: own.generate([rows[place] for place in places], kwargs))

    # Proof

    def logits(self, rows: Sequence[Sequence[int]], adapter: str | None) -> list[torch.Tensor]:
        """Logits for token rows, one row at a time (no padding), float32 on the CPU.

        Returns:
            For each row [classes] or [tokens, classes] through the adapter's head, [tokens, vocabulary] from a language
            model, or [tokens, hidden] where there is no head.
        """
        own = self._peft.find(adapter)
        if own is not None:
            return [own.logits(row) for row in rows]
        with self._residency.lease(self._residency.resolve([adapter])) as routing:
            return [self._inference.logits(row, routing) for row in rows]

    def verify(self, name: str) -> GoldenReport:
        """Recompute an adapter's golden logits through the slots it is served from.

        Raises:
            GoldenMismatchError: they differ, in the arithmetic of training, by more than the tolerance.
        """
        own = self._peft.find(name)
        if own is not None:
            return own.verify(self.numerics)
        adapter = self._residency.get(name)
        with self._residency.lease([adapter]) as routing:
            return check_golden(self._inference, routing, adapter, self.numerics)

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """An adapter's tensors as they are served, under its checkpoint's keys: float32 on the CPU."""
        own = self._peft.find(name)
        if own is not None:
            return own.state()
        adapter = self._residency.get(name)
        with self._residency.lease([adapter]) as routing:
            return resident_tensors(self.model, self._modules, routing, adapter)

    # Figures

    @property
    def adapters(self) -> list[str]:
        """The names of the loaded adapters."""
        return [*self._residency.names(), *self._peft.names()]

    @property
    def numerics(self) -> Numerics:
        """The arithmetic this backbone computes with."""
        return Numerics(self.quantization, dtype_name(self.dtype), self.device.type)

    def stats(self) -> Stats:
        """How many adapters are where, what they cost, and how long placing them took."""
        arena = self._residency.arena
        return Stats(
            adapters=tuple(self.adapters),
            slots=self._residency.slots,
            slots_used=len(self._residency.names_in_slots()),
            backbone_bytes=sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers())),
            arena_bytes=arena.nbytes,
            slot_bytes=arena.slot_bytes,
            peft_bytes=self._peft.nbytes,
            rank=arena.rank,
            evictions=self._residency.evictions,
            swap_seconds=tuple(self._residency.placements),
        )

    # Inside

    def _settle_rows(self) -> None:
        """Find out whether adapters can share a pass, again whenever they reach new modules."""
        sites = len(self._residency.arena.sites)
        if self._inference.rows_first and sites != self._sites_settled:
            self._inference.rows_first = rows_come_first(self._inference)
            self._sites_settled = sites

    def _open_site(self, path: str) -> SiteSpec:
        """Put the layer around a module that an adapter reaches for the first time."""
        wrap(self.model, path)
        layer = self.model.get_submodule(path)
        device = next((parameter.device for parameter in layer.parameters()), self.device)
        shape = self._modules.site(path)
        assert shape is not None
        return SiteSpec(shape, device)


def _per_row(adapter: str | Sequence[str | None] | None, rows: int) -> list[str | None]:
    if adapter is None or isinstance(adapter, str):
        return [adapter] * rows
    names = list(adapter)
    if len(names) != rows:
        raise UsageError(f"{len(names)} adapters for {rows} rows: expected one for each row, or one for all")
    return names
