"""Backbone: one frozen base model, loaded once, and every adapter that runs on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lorary.adapters.arguments import shown
from lorary.adapters.backbone.derives import Derives
from lorary.adapters.backbone.loads import Loads
from lorary.adapters.backbone.serves import Serves
from lorary.adapters.base.device import named_dtype
from lorary.adapters.base.identity import identify
from lorary.adapters.base.loading import load_base
from lorary.adapters.base.modules import demand_embedding
from lorary.adapters.values import Stats
from lorary.hub.errors import UsageError
from lorary.hub.manifest import BaseIdentity
from lorary.hub.pretrained_bases import bases_of
from lorary.hub.registry import Registry


class Backbone(Loads, Derives, Serves):
    """One base model and the adapters loaded on it.

    Make one with :meth:`from_pretrained` or :meth:`from_model`. Its methods may be called from several threads: the
    choice of adapters belongs to each call, and a call finishes on the versions that it began with. A process may be
    forked while none of its threads is in a call: a child that is forked in the midst of one can hang.
    """

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
        adapter_dtype: str | torch.dtype | None = None,
        registry: Registry | None = None,
    ) -> Backbone:
        """Load a base model from a folder, the local cache or the Hub (arguments as :func:`load_base`).

        Args:
            base: a folder or a Hub id.
            quantization: ``none``, ``nf4``, ``fp4`` (``nf4-single``, ``fp4-single``: without double quantization) or
                ``int8``.
            dtype: float32 on the CPU and bfloat16 on CUDA unless given.
            device: the first CUDA device (or the one that the process has chosen) unless given, else the CPU.
            device_map: transformers' own, to spread the model over several devices; not beside ``device``.
            revision: a branch, tag or commit.
            slots: how many adapters are on the device at once; more can be loaded and wait on the host.
            host_bytes: the most that waiting adapters take there, as ``2_000_000_000``, ``"2GB"`` or ``"2GiB"``; those
                beyond it, the least recently used first, are read from their files again when they are used next.
            host_adapters: the same limit as a number of adapters.
            slot_wait: how many seconds a call waits for a slot while other threads' calls have all of them.
            adapter_dtype: what adapters in slots and waiting ones are kept in, the backbone's dtype unless given.
                ``float16`` and ``bfloat16`` take half of float32's bytes, and half the time to read; products are made
                in the wider of both.
            registry: where references such as ``finance-tone@prod`` are looked up; the default one unless given.

        Raises:
            BaseNotFoundError: the base can't be found or isn't a model.
            UsageError: a setting that can't be, devices that don't hold all of the model, or a model that reads no
                token ids.
        """
        kept = None if adapter_dtype is None else named_dtype(adapter_dtype)  # a wrong one is told before a long load
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
            adapter_dtype=kept,
            registry=registry,
            random_parameters=loaded.new_parameters,
            base_files=loaded.files,
        )

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, *, identity: BaseIdentity | None = None, **settings: Any
    ) -> Backbone:
        """A backbone around a transformers model that is in memory already; the model is taken over, not copied.

        ``settings`` are ``slots``, ``host_bytes``, ``host_adapters``, ``slot_wait``, ``adapter_dtype`` and
        ``registry``, as for :meth:`from_pretrained`.

        Raises:
            UsageError: it isn't a transformers model, or reads no token ids; the tokenizer isn't one, or a setting
                can't be.
        """
        if not hasattr(model, "get_input_embeddings"):
            raise UsageError(f"expected a transformers model, found {type(model).__name__}: {shown(model)}")
        demand_embedding(model)
        if tokenizer is not None and not callable(tokenizer):
            raise UsageError(f"expected a tokenizer or None, found {type(tokenizer).__name__}: {shown(tokenizer)}")
        base_id = str(getattr(model.config, "_name_or_path", "") or "in-memory")
        return cls(model, tokenizer, identity=identity or identify(model, tokenizer, base_id), **settings)

    def __repr__(self) -> str:
        """The base, its arithmetic and how many adapters are on it, as a notebook shows them."""
        numerics, count = self.numerics, len(self.adapters)
        arithmetic = numerics.dtype if numerics.quantization == "none" else f"{numerics.quantization}, {numerics.dtype}"
        return f"<Backbone {self.identity.id} ({arithmetic} on {self.device}), adapters: {count}>"

    def stats(self) -> Stats:
        """How many adapters are where, what they cost, and how long placing them took."""
        backbone_bytes = sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))
        figures = self._residency.stats(backbone_bytes, self._following.states())
        return replace(figures, adapters=tuple(self.adapters), peft_bytes=self._peft.nbytes)
