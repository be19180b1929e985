"""What a backbone consists of: the model, its parts by path, and the books of what is loaded on it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from lorary.adapters.arguments import is_number, whole_number
from lorary.adapters.backbone.calls import Calls
from lorary.adapters.backbone.intake import Files, Intake
from lorary.adapters.base.bodies import bare_body
from lorary.adapters.base.device import dtype_name, named_dtype
from lorary.adapters.base.loading import is_encoder
from lorary.adapters.base.modules import demand_bare, map_modules, serialise_changing_rope
from lorary.adapters.base.quantization import guard_cpu, quantization_of
from lorary.adapters.heads.masked import MaskedHead
from lorary.adapters.heads.of_base import HeadsOfBase
from lorary.adapters.layer.lora import SiteOpener, home_of, unwrap
from lorary.adapters.proving.proof import probe_row
from lorary.adapters.running.inference import Inference, can_generate, padding_token
from lorary.adapters.running.padding import PaddingProbe
from lorary.adapters.through_peft.book import PeftBook
from lorary.adapters.through_peft.mirror import without_wrappers
from lorary.adapters.tiers.following import Following
from lorary.adapters.tiers.host import Budget
from lorary.adapters.tiers.residency import Limits, Residency
from lorary.hub.errors import UsageError
from lorary.hub.manifest import BaseIdentity, Numerics
from lorary.hub.registry import Registry


class Assembly:
    """The parts of a :class:`~lorary.adapters.Backbone`, put together around one model, and taken apart again."""

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
        adapter_dtype: str | torch.dtype | None = None,
        registry: Registry | None = None,
        random_parameters: Collection[str] = (),
        base_files: str | None = None,
    ) -> None:
        whole_number("slots", slots)
        if not is_number(slot_wait) or slot_wait < 0:
            raise UsageError(f"slot_wait={slot_wait!r}: expected a number of seconds")
        if registry is not None and not isinstance(registry, Registry):
            raise UsageError(f"registry={registry!r}: expected a Registry, such as Registry({str(registry)!r})")
        budget = Budget.of(host_bytes, host_adapters)
        kept = None if adapter_dtype is None else named_dtype(adapter_dtype)
        demand_bare(model)
        self.body = bare_body(model)
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
        kept = kept or self.dtype
        pad, exact = padding_token(self.model.config, tokenizer), self.quantization == "none"
        padding = PaddingProbe(self.model, self.body, pad=pad, exact=exact)
        self._inference = Inference(self.model, self.body, tokenizer, self.device, padding)
        self._modules = map_modules(self.model, self.body, random_parameters)
        files_of: dict[str, Any] = {"base": base_files or identity.id, "fingerprint": identity.fingerprint}
        masked = MaskedHead(model, self.model, self.body, **files_of)
        of_base = HeadsOfBase(model, **files_of, random=random_parameters)
        files = Files(self._inference, self._modules, self.dtype, kept, masked, of_base)
        home = home_of(self.body)
        opener = SiteOpener(self.model, self._modules, self.device, home)
        limits = Limits(slots, budget, slot_wait, kept)
        self._residency = Residency(limits, self.dtype, opener, files, home)
        self._peft = PeftBook(self.body)
        self._calls = Calls(self._inference, self._residency, self._peft, self._modules)
        self._intake = Intake(files, self._residency, self._peft, identity, self.quantization, registry)
        self._following = Following(self._intake.load_from)
        if self.quantization != "none":
            self._warm_up(probe_row((), embedding.shape[0]))

    def _warm_up(self, row: list[int]) -> None:
        """Run a row: bitsandbytes sets up a layer's state in its first pass, and several threads at once get it wrong.

        Raises:
            UsageError: the model's own code doesn't get along with quantized layers.
        """
        try:
            self._inference.run(row, None)
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise UsageError(
                f"{type(self.model).__name__} doesn't run on {self.quantization} ({reason}); "
                "open the base with quantization='none'"
            ) from error

    @property
    def adapters(self) -> list[str]:
        """The names of the loaded adapters."""
        with self._residency.lock:
            return [*self._residency.names(), *self._peft.names()]

    @property
    def registry(self) -> Registry:
        """Where references such as ``finance-tone@prod`` are looked up."""
        return self._intake.registry

    @property
    def numerics(self) -> Numerics:
        """The arithmetic this backbone computes with."""
        return Numerics(self.quantization, dtype_name(self.dtype), self.device.type)

    def release(self) -> None:
        """Forget every adapter and leave the model as it was before it became a backbone; nothing can be loaded again.

        A model whose forward was replaced (compiled, or with a lock around it) gets its own one again.

        Raises:
            UsageError: calls with adapters are still running.
        """
        self._residency.demand_idle()
        self._intake.released = True
        for name in self.adapters:
            self._withdraw(name)
        self._peft.release()
        unwrap(self.model)
        own = without_wrappers(self.body.__dict__.pop("forward", None))
        if own is not None and getattr(own, "__func__", None) is not type(self.body).forward:
            self.body.forward = own  # the caller's, or accelerate's

    def __getstate__(self) -> Any:
        """Refuse a copy or a pickle.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "a backbone holds a model, locks and threads, and can't be copied or pickled; threads and forked processes "
            "may use the same one, other processes open their own"
        )

    def _withdraw(self, name: str) -> None:
        """Forget an adapter, and what its name follows; calls in flight finish on it."""
        self._following.forget(name)
        with self._residency.lock:
            if not self._peft.withdraw(name):
                self._residency.withdraw(name)
            self._residency.note_pin(name, False)
