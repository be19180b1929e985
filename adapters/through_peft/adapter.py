"""An adapter that runs through PEFT: a model of its own over the backbone's memory, and passes of its own.

It holds no slot and shares no pass with other adapters. Whatever PEFT changes in a model to run it is changed in that
model alone, so calls in flight on the slots, and on other such adapters, never notice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch

from lorary.adapters.adapter import Adapter, task_of, with_its_task
from lorary.adapters.base.identity import body_of
from lorary.adapters.base.loading import is_encoder
from lorary.adapters.heads.left_out import leave_out
from lorary.adapters.heads.masked import MaskedHead
from lorary.adapters.heads.of_base import HeadsOfBase
from lorary.adapters.heads.task_heads import TASK_CLASSES, TaskHead, fill_head
from lorary.adapters.layer.packing import Packing
from lorary.adapters.layer.routing import Routing
from lorary.adapters.layer.slots import Arena
from lorary.adapters.matching.fitting import task_model
from lorary.adapters.matching.keys import PEFT_PREFIX
from lorary.adapters.matching.soundness import largest_values
from lorary.adapters.matching.wrappers import plain_checkpoint, plain_names
from lorary.adapters.predict.base import Row
from lorary.adapters.predict.rows import predict_rows
from lorary.adapters.predict.table import Parameters
from lorary.adapters.proving.golden import check_golden_rows, read_golden
from lorary.adapters.proving.proof import GoldenReport, judge_golden, probe_row
from lorary.adapters.running.inference import Inference, longest_input
from lorary.adapters.text.generate import PromptRow
from lorary.adapters.text.settings import settings_of_part
from lorary.adapters.text.tokenizers import OwnTokenizer, Tokenizers
from lorary.adapters.through_peft.mirror import memory_of, mirror
from lorary.adapters.through_peft.model import build_peft_model, peft_errors, peft_state
from lorary.adapters.through_peft.own_pass import OwnPass
from lorary.adapters.through_peft.view import PeftView, UnpaddedPasses
from lorary.adapters.through_peft.vocabulary import PREFIXES, own_vocabulary, resize_vocabulary
from lorary.adapters.tiers.weights import Weights
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import NoEffectError, UnsupportedAdapterError, UsageError
from lorary.hub.manifest import Manifest, Numerics


@dataclass(eq=False, repr=False)
class PeftAdapter:
    """One version of an adapter that runs through PEFT, fitted to a backbone.

    ``inference`` runs its own model and ``backbone`` the backbone's; ``plain_head`` is its head on the bare backbone.
    ``bare`` is its model without it, with its head: the backbone's own, or where it has its own vocabulary, one more.
    """

    name: str
    checkpoint: Checkpoint
    digest: str
    task: str
    view: PeftView
    inference: Inference
    backbone: Inference
    head: TaskHead | None
    plain_head: TaskHead | None
    golden: list[torch.Tensor] | None
    nbytes: int
    bare: Any
    own_tokenizer: OwnTokenizer | None = None

    @property
    def source(self) -> str:
        """What errors call it."""
        return self.checkpoint.source

    @property
    def manifest(self) -> Manifest | None:
        """Its manifest, if it has one."""
        return self.checkpoint.manifest

    @property
    def rank(self) -> int:
        """Its config's rank, 0 for methods without one."""
        return self.checkpoint.rank or 0

    @property
    def labels(self) -> list[str] | None:
        """The names of the head's classes, in order."""
        labelled = self.head is not None and self.task != "fill-mask"
        return list(self.head.model.config.id2label.values()) if labelled and self.head else None

    @property
    def overrides(self) -> Mapping[str, Any]:
        """Nothing: modules that it trained whole are in its own model."""
        return {}

    def routing(self, rows: int) -> OwnPass:
        """The routing of a call whose every row uses this adapter."""
        return OwnPass(_empty_arena(), [cast(Adapter, self)] * rows, [0] * rows)

    def demand_unpacked(self, packing: Packing | None) -> None:
        """Refuse a packed row.

        Raises:
            UsageError: there is one.
        """
        if packing is not None:
            raise UsageError(
                f"{self.name!r} runs through PEFT, which knows no packed rows; pass its sequences as rows of their own"
            )

    def predict(self, rows: Sequence[Row], params: Parameters) -> list[Any]:
        """One prediction per row."""
        return predict_rows(self.inference, rows, self.routing(len(rows)), params)

    def generate(self, prompts: Sequence[PromptRow], kwargs: dict[str, Any]) -> list[str]:
        """The new text of each prompt, as :meth:`Inference.generate` gives it."""
        if not self.view.rows_apart:
            return self.inference.generate(prompts, self.routing(len(prompts)), kwargs)
        # With padding beside it, a row would depend on its batch mates.
        parts = [settings_of_part(kwargs, [place], len(prompts)) for place in range(len(prompts))]
        return [
            text
            for prompt, part in zip(prompts, parts, strict=True)
            for text in self.inference.generate([prompt], self.routing(1), part)
        ]

    def logits(self, row: Sequence[int]) -> torch.Tensor:
        """A token row's logits (:meth:`lorary.adapters.Backbone.logits` says of what shape)."""
        return self.inference.logits(row, self.routing(1))

    def bare_logits(self, row: Sequence[int]) -> torch.Tensor:
        """The same from the bare backbone, read as this adapter's: through its head, or before the vocabulary."""
        read_as_it_is = self.plain_head is None and self.task != "feature-extraction"
        plain = None if read_as_it_is else cast(Adapter, _Headed(self, self.plain_head))
        return self.backbone.logits(row, Routing(_empty_arena(), [plain], [0]))

    def state(self) -> dict[str, torch.Tensor]:
        """Its tensors as they are served, under PEFT's keys: float32 on the CPU."""
        return peft_state(self.view.peft_model)

    def demand_effect(self) -> None:
        """Run a few tokens with and without it.

        Raises:
            NoEffectError: the two answers are the same, bit for bit, or the adapter's aren't numbers.
            UnsupportedAdapterError: it acts after tokens that the vocabulary doesn't have.
        """
        golden_rows = self.manifest.golden_rows if self.manifest else ()
        vocabulary = self.backbone.vocabulary
        invocation = self.checkpoint.config.get("alora_invocation_tokens") or []
        if not isinstance(invocation, list) or not all(token in range(vocabulary) for token in invocation):
            raise UnsupportedAdapterError(
                f"{self.source}: alora_invocation_tokens={invocation!r:.200}: expected tokens below {vocabulary}"
            )
        for rows in dict.fromkeys(((), golden_rows)):
            row = probe_row(rows, vocabulary)
            row[1:1] = invocation  # before them, aLoRA does nothing
            if self.head is not None and self.head.model.config.is_encoder_decoder:
                row.append(self.head.model.config.eos_token_id)  # where the classifiers of these read
            bare = self.bare_logits(row)
            with peft_errors(self.checkpoint):
                with_it = self.logits(row)
            if bool(torch.isfinite(bare).all()) and not bool(torch.isfinite(with_it).all()):
                raise NoEffectError(f"{self.source}: with it the backbone answers NaN or infinity; train it again")
            if not torch.equal(with_it, bare):
                return
        raise NoEffectError(
            f"{self.source}: the backbone answers the same with it as without; it was saved untrained, or its layers "
            "aren't used for this kind of input"
        )

    def verify(self, numerics: Numerics) -> GoldenReport:
        """Recompute its golden logits. Raises as :func:`judge_golden`."""
        return judge_golden(self.manifest, self.golden, numerics, self.logits, self.bare_logits)


@dataclass(frozen=True, eq=False)
class _Headed:
    """Another head in an adapter's place."""

    adapter: PeftAdapter
    head: TaskHead | None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.adapter, name)


def build_peft_adapter(
    weights: Weights,
    *,
    name: str,
    inference: Inference,
    dtype: torch.dtype,
    of_base: HeadsOfBase,
    tokenizers: Tokenizers,
    masked: MaskedHead,
) -> PeftAdapter:
    """Fit a checkpoint to a backbone through PEFT: every key placed, every shape checked, the head built.

    Nothing of the backbone changes. Raises what :func:`build_peft_model`, :func:`fill_head` and
    :meth:`MaskedHead.get` do, and NoEffectError for tensors that hold NaN or infinity.
    """
    task, names = task_of(weights.checkpoint), plain_names(weights.tensors)
    tensors = {names[key]: tensor.clone() for key, tensor in weights.tensors.items()}
    checkpoint = plain_checkpoint(weights.checkpoint)
    # Some methods keep indices beside their weights.
    largest_values({key: tensor for key, tensor in tensors.items() if tensor.is_floating_point()}, checkpoint.source)
    whole, body = inference.model, inference.body
    made = _models(checkpoint, task, tensors, inference, dtype, of_base, masked)
    root, bare, plain_head = made.root, made.bare, made.plain_head
    rows = root.get_input_embeddings().weight.shape[0]
    check_golden_rows(checkpoint, rows, longest_input(root))
    view = PeftView(build_peft_model(checkpoint, tensors, root, made.lender))
    virtual = view.virtual_tokens
    passes = _passes(view, view)
    # A language model that was adapted for its hidden states gives them from its body, into which PEFT's layers went.
    from_body = task == "feature-extraction" and not virtual and body_of(root) is not root
    hidden = _passes(body_of(root), view) if from_body else passes
    on_body = plain_head is None and type(root) is type(body) and whole is not body
    # Its new tokens are no effect of an adapter's, so what it is held against has them as well.
    plain = bare if made.resized else body if on_body else None
    settings = {field.name: getattr(inference, field.name) for field in fields(Inference)}
    own = {"model": passes, "body": hidden, "rows_first": True, "_bare": None, "virtual_tokens": virtual}
    return PeftAdapter(
        name=name,
        checkpoint=checkpoint,
        digest=weights.digest,
        task=task,
        view=view,
        inference=Inference(**(settings | own)),
        backbone=inference if plain is None else Inference(**(settings | _bare(plain))),
        head=TaskHead(passes, reads_body_output=False) if plain_head is not None else None,
        plain_head=plain_head,
        golden=read_golden(checkpoint),
        nbytes=_own_bytes(view.peft_model, made.lender),
        bare=bare,
        own_tokenizer=tokenizers.of(checkpoint, rows),
    )


@dataclass(frozen=True)
class _Models:
    """``root``, which PEFT's layers go into, and ``bare``, the same without them; both share ``lender``'s tensors.

    ``plain_head`` is the task's head around ``bare``; ``resized`` is true of a vocabulary that is the adapter's own.
    """

    root: Any
    bare: Any
    lender: Any
    plain_head: TaskHead | None
    resized: bool


def _models(
    checkpoint: Checkpoint, task: str, tensors: Mapping[str, torch.Tensor], inference: Inference, dtype: torch.dtype,
    of_base: HeadsOfBase, masked: MaskedHead,
) -> _Models:  # fmt: skip
    whole, body = inference.model, inference.body
    plain_head, lender = None, whole
    if task in TASK_CLASSES:
        plain_head, model = (
            _headed(checkpoint, task, tensors, part, inference, dtype, of_base, shared)
            for part, shared in ((body, True), (mirror(body), False))
        )
        bare, root = plain_head.model, model.model
    elif task == "fill-mask" and is_encoder(body.config):
        known = masked.get(checkpoint.source)
        known.demand([name.removeprefix(prefix) for name in tensors for prefix in PREFIXES], checkpoint.source)
        own = mirror(body)
        leave_out(known.left_out, own)
        lender, root = known.around(body), known.around(own)
        bare, plain_head = lender, TaskHead(lender, reads_body_output=False)
    else:
        bare = whole if _fits(tensors, whole, body) else body
        root = mirror(bare)
    size = own_vocabulary(checkpoint, body)
    if size is not None:
        resize_vocabulary(root, size, tensors, checkpoint)
        bare = mirror(root)
        if plain_head is not None:
            plain_head = TaskHead(bare, reads_body_output=False)
    return _Models(root, bare, lender, plain_head, resized=size is not None)


def _headed(
    checkpoint: Checkpoint,
    task: str,
    tensors: Mapping[str, torch.Tensor],
    body: Any,
    inference: Inference,
    dtype: torch.dtype,
    of_base: HeadsOfBase,
    shared: bool,
) -> TaskHead:
    """The adapter's task model around a body, its head filled from the file."""
    empty = task_model(checkpoint, task, body, inference.pad_id)
    in_body = {name.replace(".base_layer.", ".") for name, _ in body.named_parameters(remove_duplicate=False)}
    in_head = [
        name for name, _ in empty.named_parameters() if name.removeprefix(f"{empty.base_model_prefix}.") not in in_body
    ]
    own = {name: tensors[prefix + name] for name in in_head for prefix in PREFIXES if prefix + name in tensors}
    source, device = with_its_task(checkpoint), inference.device
    return fill_head(empty, body, own, source=source, device=device, dtype=dtype, of_base=of_base, shared=shared)


def _bare(model: Any) -> dict[str, Any]:
    return {"model": model, "body": body_of(model), "_bare": None}


def _passes(model: Any, view: PeftView) -> Any:
    return UnpaddedPasses(model, view.rows_alone) if view.rows_apart else model


def _fits(tensors: Mapping[str, torch.Tensor], whole: Any, body: Any) -> bool:
    """Was the adapter trained in the whole model, by the names of its keys, rather than in its body alone?"""
    if whole is body:
        return True
    first = {key.removeprefix(PEFT_PREFIX).split(".")[0] for key in tensors}
    return not first & {name for name, _ in body.named_children()}


def _own_bytes(peft_model: torch.nn.Module, backbone: torch.nn.Module) -> int:
    shared = memory_of(backbone)
    own = {
        t.data_ptr(): t.nbytes for t in (*peft_model.parameters(), *peft_model.buffers()) if t.data_ptr() not in shared
    }
    return sum(own.values())


def _empty_arena() -> Arena:
    return Arena({}, rank=1, slots=1, dtype=torch.float32)
