"""Backbone: one frozen base model, loaded once, and every adapter that runs on it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorary.adapters.blending.blend import kept_blend, settle_blend
from lorary.adapters.blending.combination import Combination
from lorary.adapters.blending.parts import read_loaded
from lorary.adapters.calls import Calls, Names
from lorary.adapters.compiled import compile_body, eagerly
from lorary.adapters.device import dtype_name
from lorary.adapters.engine import Engine, EngineSettings
from lorary.adapters.generate import PromptRow
from lorary.adapters.identity import body_of, identify
from lorary.adapters.inference import Inference, can_generate
from lorary.adapters.intake import Files, Intake
from lorary.adapters.loading import is_encoder, load_base
from lorary.adapters.lora import SiteOpener, unwrap
from lorary.adapters.masked import MaskedHead
from lorary.adapters.merging.merge import Target, write_merged
from lorary.adapters.merging.through_peft import write_merged_by_peft
from lorary.adapters.modules import demand_bare, map_modules, serialise_changing_rope
from lorary.adapters.predict.base import Row
from lorary.adapters.proof import GoldenReport, probe_row
from lorary.adapters.quantization import guard_cpu, quantization_of
from lorary.adapters.through_peft.book import PeftBook
from lorary.adapters.tiers.following import Following
from lorary.adapters.tiers.host import Budget
from lorary.adapters.tiers.residency import Limits, Residency
from lorary.adapters.values import LoadedAdapter, MergedModel, Stats
from lorary.hub.bases import bases_of
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import UnknownReferenceError, UsageError
from lorary.hub.manifest import BaseIdentity, Numerics
from lorary.hub.registry import Registry
from lorary.hub.tables.lookup import registry_reference


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
        host_bytes: int | str | None = None,
        host_adapters: int | None = None,
        slot_wait: float = 30.0,
        registry: Registry | None = None,
        random_parameters: Collection[str] = (),
        base_files: str | None = None,
    ) -> None:
        if slots < 1:
            raise UsageError(f"slots={slots}: expected at least 1")
        limits = Limits(slots, Budget.of(host_bytes, host_adapters), slot_wait)
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
        self._inference = Inference(self.model, self.body, tokenizer, self.device)
        self._modules = map_modules(self.model, self.body, random_parameters)
        masked = MaskedHead(
            model, self.model, self.body, base=base_files or identity.id, fingerprint=identity.fingerprint
        )
        files = Files(self._inference, self._modules, self.dtype, masked)
        self._residency = Residency(limits, self.dtype, SiteOpener(self.model, self._modules, self.device), files)
        self._peft = PeftBook(self.body)
        self._calls = Calls(self._inference, self._residency, self._peft, self._modules)
        self._intake = Intake(files, self._residency, self._peft, identity, self.quantization, registry)
        self._following = Following(self._intake.load)
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
        host_bytes: int | str | None = None,
        host_adapters: int | None = None,
        slot_wait: float = 30.0,
        registry: Registry | None = None,
    ) -> Backbone:
        """Load a base model from a folder, the local cache or the Hub (arguments as :func:`load_base`).

        Args:
            base: a folder or a Hub id.
            quantization: ``none``, ``nf4``, ``fp4`` (``nf4-single``, ``fp4-single``: without double quantization) or
                ``int8``.
            dtype: float32 on the CPU and bfloat16 on CUDA unless given.
            device: the first CUDA device unless given, else the CPU.
            device_map: to spread the model over several devices.
            revision: a branch, tag or commit.
            slots: how many adapters are on the device at once; more can be loaded and wait on the host.
            host_bytes: the most that waiting adapters take there, as ``2_000_000_000``, ``"2GB"`` or ``"2GiB"``; those
                beyond it, the least recently used first, are read from their files again when they are used next.
            host_adapters: the same limit as a number of adapters.
            slot_wait: how many seconds a call waits for a slot while other threads' calls have all of them.
            registry: where references such as ``finance-tone@prod`` are looked up; the default one unless given.

        Raises:
            BaseNotFoundError: the base can't be found or isn't a model.
        """
        with bases_of(registry):
            loaded = load_base(
                base, quantization=quantization, dtype=dtype, device=device, device_map=device_map, revision=revision
            )
        return cls(
            loaded.model,
            loaded.tokenizer,
            identity=loaded.identity,
            slots=slots,
            host_bytes=host_bytes,
            host_adapters=host_adapters,
            slot_wait=slot_wait,
            registry=registry,
            random_parameters=loaded.new_parameters,
            base_files=loaded.files,
        )

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, *, identity: BaseIdentity | None = None, **settings: Any
    ) -> Backbone:
        """A backbone around a transformers model that is in memory already; the model is taken over, not copied.

        ``settings`` are ``slots``, ``host_bytes``, ``host_adapters``, ``slot_wait`` and ``registry``, as for
        :meth:`from_pretrained`.
        """
        base_id = str(getattr(model.config, "_name_or_path", "") or "in-memory")
        return cls(model, tokenizer, identity=identity or identify(model, tokenizer, base_id), **settings)

    # Loading

    def load(
        self,
        reference: str | Path | Checkpoint,
        name: str | None = None,
        *,
        allow_base_mismatch: bool = False,
        lazy: bool = False,
    ) -> LoadedAdapter:
        """Load an adapter: validated whole, staged, shown to take effect, then published under its name.

        Whatever was loaded under that name serves until then, and goes on serving when anything fails.

        Args:
            reference: ``name``, ``name@3``, ``name@alias``, ``user/repo[@revision]``, a folder, or a checkpoint.
            name: the name to load it under; the adapter's own unless given.
            allow_base_mismatch: load an adapter of another base all the same.
            lazy: publish it as soon as its base, its config and its tensors' names and shapes are found right; the
                tensors are read, and it is shown to take effect, when it is first used.

        Raises:
            UnknownReferenceError: there is no such adapter.
            CheckpointError: its files are damaged, don't fit, or don't act (the subclass says which).
            BaseMismatchError: it was trained on another base.
            SlotsFullError: every slot is pinned or in use.
        """
        return self._intake.load(reference, name, allow_base_mismatch=allow_base_mismatch, lazy=lazy)

    def swap(
        self, name: str, reference: str | Path | Checkpoint, *, allow_base_mismatch: bool = False
    ) -> LoadedAdapter:
        """Let ``name`` stand for another version; calls in flight finish on the one they began with.

        Raises:
            UnknownReferenceError: nothing is loaded under ``name``; and all that :meth:`load` raises.
        """
        self._calls.resolve([name])
        return self.load(reference, name, allow_base_mismatch=allow_base_mismatch)

    def blend(
        self,
        weights: Mapping[str, float],
        name: str,
        *,
        combination: str = "cat",
        density: float | None = None,
        rank: int | None = None,
        majority_sign: str | None = None,
        seed: int | None = None,
        head: str | None = None,
        domain: str | None = None,
        output: str | Path | None = None,
        register: bool = False,
    ) -> LoadedAdapter:
        """Combine loaded adapters into a new one and load it under ``name``, as :meth:`load` would.

        Args:
            weights: the names of loaded adapters, and how much of each; negative takes its effect away.
            name: what the blend is called.
            combination: ``cat``, the exact weighted sum, or another of PEFT's kinds (:class:`Combination`).
            density: for the pruning kinds, the share of values they keep.
            rank: for the kinds that end in svd, the rank of the result; the largest of the adapters' unless given.
            majority_sign: for the TIES kinds, ``total`` (the default) or ``frequency``.
            seed: for the DARE kinds; 0 unless given.
            head: whose head, labels, prompt and preprocessing it takes over, where they differ; or ``average``.
            domain: its subject matter; by default that of the adapter that ``head`` names, else of all of them.
            output: a new folder to keep its checkpoint in.
            register: put it into the registry as a version of ``name``, with the adapters as its parents.

        Raises:
            UnknownReferenceError: an adapter that isn't loaded.
            UsageError: a weight or a setting that can't be.
            BlendError: the adapters can't be combined so.
            BaseMismatchError: they belong to different bases.
            OutputError: ``output`` is there already, or can't be written.
        """
        how = Combination(combination, density, rank, majority_sign, seed)
        registry = self._intake.registry
        for of in weights:
            self._peft.refuse(of, "blend")
        parts = read_loaded({of: self._residency.get(of) for of in weights}, weights, registry)
        with kept_blend(parts, how, name, output, head=head, domain=domain) as blend:
            into = registry if register else None
            settle = partial(settle_blend, blend, parts, into, self._inference, self.numerics)
            return self._intake.take(blend.source, name, settle=settle)

    def merge(self, name: str, folder: str | Path, *, dtype: str | torch.dtype | None = None) -> MergedModel:
        """Write the model that an adapter makes of this backbone, for transformers alone; nothing changes here.

        The update goes into the weights as they are served, dequantized; the files are loaded again and their logits
        held against the adapter's before the folder gets its name. Merged on a copy in host memory, tensor by tensor.

        Args:
            name: a loaded adapter.
            folder: a new or empty folder.
            dtype: of the merged weights; the backbone's unless given.

        Raises:
            UnknownReferenceError: nothing is loaded under ``name``.
            MergeError: the adapter has no place in the model's class, or the merged model doesn't answer like it.
            OutputError: the folder holds something, or can't be written.
        """
        into = Target(Path(folder).expanduser().absolute(), self.identity, self.numerics, dtype)
        own = self._peft.find(name)
        if own is not None:
            with eagerly():
                return write_merged_by_peft(own, self._modules, into)
        adapter = self._residency.get(name)
        with self._residency.lease([adapter]) as routing, self._intake.factors(adapter) as factors, eagerly():
            return write_merged(self._inference, routing, factors, self._modules, into)

    def release(self) -> None:
        """Forget every adapter and leave the model as it was before it became a backbone; no call may follow.

        A model whose forward was replaced (compiled, or with a lock around it) gets its own one again.
        """
        for name in self.adapters:
            self.unload(name)
        unwrap(self.model)
        self.body.__dict__.pop("forward", None)

    def unload(self, name: str) -> None:
        """Forget an adapter; calls in flight finish on it."""
        self._calls.resolve([name])
        self._following.forget(name)
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

    def prefetch(self, names: Sequence[str]) -> dict[str, Future[None]]:
        """Begin to bring adapters in, in the background: to the host, and as many as there are slots into slots.

        Returns:
            A future by name, for who wants to wait or to hear of a failure; the next call that uses the name raises it
            in any case. An adapter that runs through PEFT is there already, and has none.

        Raises:
            UnknownReferenceError: one of them isn't loaded.
        """
        return self._intake.prefetch([name for name in names if self._peft.find(name) is None])

    def follow(self, reference: str, name: str | None = None, *, interval: float = 2.0) -> LoadedAdapter:
        """Load ``name@alias`` (or a bare name: its latest version), and again whenever it means another version.

        A version that can't be loaded leaves the one before serving: a ``FollowWarning`` and ``stats().followed`` say
        why, once, and it is tried again when the alias moves again (after lack of room or of memory, at every look).

        Args:
            reference: what to follow, in the registry.
            name: the name to load it under; the adapter's own unless given.
            interval: seconds between two looks at the registry's change counter.

        Raises:
            UsageError: the reference can't move; and all that :meth:`load` raises.
        """
        name = name or registry_reference(reference).name
        return self._following.follow(reference, name, self._intake.registry, interval)

    def unfollow(self, name: str) -> None:
        """Follow a name's reference no more; the version that serves now stays.

        Raises:
            UnknownReferenceError: it isn't followed.
        """
        if not self._following.forget(name):
            followed = ", ".join(state.name for state in self._following.states()) or "none"
            raise UnknownReferenceError(f"{name!r} follows no reference; followed: {followed}")

    def refresh(self) -> list[str]:
        """Look at the registry now, rather than at the next interval; returns the followed names that were swapped."""
        return self._following.refresh()

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
    def using(self, adapter: Names, *, lengths: Sequence[int] | None = None) -> Iterator[Any]:
        """Within the block, in this thread, calls of the model use ``adapter`` (or one per row of the batch).

        Yields the model to call: the adapter's task model where it has a head, the backbone's own model otherwise.

        Args:
            adapter: a name, or a name (None: the bare backbone) for each row.
            lengths: for a packed batch, one row [1, tokens] that holds several sequences one after the other: the
                tokens of each, and ``adapter`` is then one per sequence. Keeping the sequences from attending to each
                other is the caller's part (``position_ids`` that begin anew, or a mask).

        Raises:
            UnknownReferenceError: an adapter that isn't loaded.
            UsageError: lengths and adapters of different number.
            RoutingError: when the model is called, on a row whose tokens aren't those of ``lengths``.
        """
        with self._calls.using(adapter, lengths) as model:
            yield model

    def predict(
        self,
        inputs: Row | Sequence[Row],
        adapter: Names = None,
        *,
        batch_size: int = 32,
        **params: Any,
    ) -> Any:
        """Predict with one adapter for all rows or one per row, in the shapes of ``transformers.pipeline``.

        Args:
            inputs: a text, a mapping (``{"text", "text_pair"}``, ``{"question", "context"}`` or the adapter's own
                columns), or a list of them.
            adapter: a name, or a name (None: the bare backbone) for each row; tasks may mix.
            batch_size: rows per pass.
            params: the pipeline's own parameters (``top_k``, ``aggregation_strategy``, ...); where tasks generate,
                those of ``generate``. Each goes to all tasks of the call that take it.

        Returns:
            For a list, one prediction per row; for a single row, what the task's pipeline returns for one.

        Raises:
            UnknownReferenceError: an adapter that isn't loaded.
            UsageError: rows and adapters of different number, a row without its text, or a parameter that no task
                takes.
        """
        return self._calls.predict(inputs, adapter, batch_size, params)

    def generate(
        self,
        prompts: PromptRow | Sequence[PromptRow],
        adapter: Names = None,
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
        return self._calls.generate(prompts, adapter, generate_kwargs)

    def engine(self, **settings: Any) -> Engine:
        """Serve many callers at once by continuous batching, each with its own adapter; best in a ``with`` block.

        Args:
            settings: ``cache_tokens``, ``batch_tokens``, ``page_tokens``, ``max_running``, ``spare_slots`` and
                ``prefix_cache``, as for :class:`~lorary.adapters.engine.EngineSettings`.

        Raises:
            EngineUnsupportedError: the model, its attention or the installed transformers isn't up to it.
            UsageError: one of the numbers is too small.
        """
        return Engine(self._inference, self._residency, self._peft, EngineSettings(**settings))

    # Proof

    def logits(self, rows: Sequence[Sequence[int]], adapter: str | None) -> list[torch.Tensor]:
        """Logits for token rows, one row at a time (no padding), float32 on the CPU.

        Returns:
            For each row [classes] or [tokens, classes] through the adapter's head ([tokens, 2], start and end, for
            question answering), [tokens, vocabulary] from a language model, or [tokens, hidden] where there is no head
            and from an embedding adapter.
        """
        return self._calls.logits(rows, adapter)

    def verify(self, name: str) -> GoldenReport:
        """Recompute an adapter's golden logits through the slots it is served from.

        Raises:
            GoldenMismatchError: they differ, in the arithmetic of training, by more than the tolerance.
        """
        return self._calls.verify(name, self.numerics)

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """An adapter's tensors as they are served, under its checkpoint's keys: float32 on the CPU."""
        return self._calls.state(name)

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
        backbone_bytes = sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))
        figures = self._residency.stats(backbone_bytes, self._following.states())
        return replace(figures, adapters=tuple(self.adapters), peft_bytes=self._peft.nbytes)
