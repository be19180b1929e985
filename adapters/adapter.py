"""An adapter made ready for one backbone: its keys matched by their headers, its tensors checked when they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from lorary.adapters.dora import fold_magnitude
from lorary.adapters.golden import check_golden_rows
from lorary.adapters.heads import (
    DECODER,
    LABELLED,
    TASK_CLASSES,
    TASK_OF_PEFT_TYPE,
    TaskHead,
    count_labels,
    empty_head,
    fill_head,
    in_parts,
)
from lorary.adapters.masked import MaskedHead, MaskedModel, adapt_head
from lorary.adapters.matching.keys import KeyPlan, Site, plan_keys
from lorary.adapters.matching.renaming import renamed_keys
from lorary.adapters.matching.wrappers import plain_checkpoint, plain_names
from lorary.adapters.modules import LinearShape, ModuleMap, output_scale
from lorary.adapters.override import TrainedLinear
from lorary.adapters.slots import LowRank
from lorary.adapters.tiers.content import Content, Parts
from lorary.adapters.tiers.weights import Weights
from lorary.adapters.tokenizers import OwnTokenizer
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import KeyMismatchError, NoEffectError, UnsupportedAdapterError
from lorary.hub.manifest import Manifest

if TYPE_CHECKING:
    from lorary.adapters.inference import Inference

_TAME = 1e4


@dataclass(frozen=True)
class Fit:
    """What a checkpoint's headers say of it on one backbone: its task, the place of each tensor, its head's labels.

    ``labels`` is None for tasks that have none.
    """

    task: str
    plan: KeyPlan
    labels: list[str] | None


@dataclass(eq=False, repr=False)
class Adapter:
    """One version of an adapter, fitted to a backbone, under the name it was loaded by.

    Its tensors are in ``content``, which adapters of the same digest share; within a lease they are all there.
    """

    name: str
    checkpoint: Checkpoint
    fit: Fit
    content: Content
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
    def task(self) -> str:
        """Its task."""
        return self.fit.task

    @property
    def plan(self) -> KeyPlan:
        """The place of each of its tensors."""
        return self.fit.plan

    @property
    def labels(self) -> list[str] | None:
        """The names of the head's classes, in order; None for tasks that have none."""
        return self.fit.labels

    @property
    def digest(self) -> str:
        """The version's identity."""
        return self.content.digest

    def rank_at(self, path: str) -> int:
        """The adapter's rank at a site, 0 where it has none."""
        need = self.content.needs.get(path)
        return need.rank if need is not None else 0

    @property
    def rank(self) -> int:
        """The largest rank at any site."""
        return max(site.rank for site in self.plan.sites)

    @property
    def head(self) -> TaskHead | None:
        """The task head, on the backbone's device; None where there is none, or while it isn't in memory."""
        return self.content.parts.head if self.content.parts else None

    @property
    def overrides(self) -> Mapping[str, TrainedLinear]:
        """The linears that were trained whole, by path, on the backbone's device; empty while not in memory."""
        return self.content.parts.overrides if self.content.parts else {}


def task_of(checkpoint: Checkpoint) -> str:
    """The task of a checkpoint: its manifest's, else the one that PEFT's ``task_type`` stands for.

    Raises:
        UnsupportedAdapterError: a task type that PEFT doesn't define.
    """
    if checkpoint.manifest is not None:
        return checkpoint.manifest.task
    task_type = checkpoint.config.get("task_type")
    if task_type is None:
        return "feature-extraction"
    if task_type not in TASK_OF_PEFT_TYPE:
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: task_type {task_type!r}; expected one of {', '.join(TASK_OF_PEFT_TYPE)}"
        )
    return TASK_OF_PEFT_TYPE[task_type]


@dataclass(frozen=True)
class Fitter:
    """Fits checkpoints to one backbone; nothing of the backbone changes."""

    inference: Inference
    modules: ModuleMap
    dtype: torch.dtype
    masked: MaskedHead
    _modules_of: dict[str, frozenset[str]] = field(default_factory=dict, repr=False)  # by task

    def fit(self, checkpoint: Checkpoint) -> Fit:
        """Place every key and check every shape, by the files' headers alone.

        Raises what :func:`plan_keys` and :meth:`MaskedHead.get` do, and CheckpointError for
        golden logits that don't fit the manifest.
        """
        task = task_of(checkpoint)
        of_base = self._head_of_base(checkpoint.source, task)
        offered = of_base.offered if of_base else self._offered(checkpoint, task)
        head = of_base.linears if of_base else None
        plan = _plan(checkpoint, self.inference.model, self.modules, offered, head)
        if not plan.sites:
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: updates nothing but the head; an adapter of the shared body was expected"
            )
        if task not in TASK_CLASSES and plan.head and (of_base is None or of_base.offered is None):
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: carries a trained head ({', '.join(plan.head)}) for the task {task!r}; "
                f"heads are known for {', '.join(TASK_CLASSES)}"
            )
        check_golden_rows(checkpoint)
        return Fit(task, plan, list(_labels(checkpoint)) if task in LABELLED else None)

    def factors(self, adapter: Adapter, weights: Weights) -> dict[str, LowRank]:
        """An adapter's factors by site, valid as long as ``weights`` are.

        Raises:
            NoEffectError: a tensor holds NaN or infinity, or every B is zero.
            UnsupportedAdapterError: a parameter of the base that was saved along isn't the backbone's.
        """
        source, tensors = adapter.source, weights.tensors
        largest = largest_values(tensors, source)
        _check_copies(adapter.plan, tensors, self.inference.model, source)
        lowrank = {
            site.path: _low_rank(
                site, tensors, self.inference.model.get_submodule(site.path), self.modules.site(site.path)
            )
            for site in adapter.plan.sites
        }
        if not any(own.acts for own in lowrank.values()):
            raise NoEffectError(
                f"{source}: every lora_B is zero, so the adapter does nothing; it was saved untrained, or damaged"
            )
        adapter.content.tame = _are_tame(lowrank, adapter.plan, largest, self.dtype)
        return lowrank

    def parts(self, adapter: Adapter, weights: Weights) -> Parts:
        """An adapter's head and the modules it trained whole, in memory of their own. Raises as :func:`fill_head`."""
        plan, head = adapter.plan, None
        empty = self._empty_head(weights.checkpoint, adapter.task)
        of_base = self._head_of_base(adapter.source, adapter.task)
        own = {name: weights.tensors[key].clone() for name, key in plan.head.items()}
        if of_base is not None:
            updates = {
                site.path: _low_rank(
                    site, weights.tensors, of_base.model.get_submodule(site.path), of_base.linears[site.path]
                )
                for site in plan.head_sites
            }
            head = adapt_head(of_base, updates, own, adapter.source)
        elif empty is not None:
            head = fill_head(
                empty, self.inference.body, own, source=adapter.source, device=self.inference.device, dtype=self.dtype
            )
        return Parts(_overrides(plan, weights.tensors, self.inference.model, self.modules, self.dtype), head)

    def _head_of_base(self, source: str, task: str) -> MaskedModel | None:
        return self.masked.get(source) if task == "fill-mask" else None

    def _offered(self, checkpoint: Checkpoint, task: str) -> frozenset[str] | None:
        """The modules of the task model that an adapter was trained in, None where that is the backbone's own.

        A task model may lack a part of the body (BERT's pooler, in tagging), and then nothing is missing there. Its
        modules are the same whatever its labels, so each task's model is built once.
        """
        if task in TASK_CLASSES:
            if task not in self._modules_of:
                empty = self._empty_head(checkpoint, task)
                self._modules_of[task] = frozenset(name for name, _ in empty.named_modules())
            return self._modules_of[task]
        body = self.inference.body
        decoders = any(f".{DECODER}." in key for key in checkpoint.tensors)
        if task == "feature-extraction" and in_parts(body) and not decoders:
            names = (name for name, _ in body.named_modules())
            return frozenset(name for name in names if name.partition(".")[0] not in (DECODER, "lm_head"))
        return None

    def _empty_head(self, checkpoint: Checkpoint, task: str) -> Any:
        if task not in TASK_CLASSES:
            return None
        return task_model(checkpoint, task, self.inference.body, self.inference.pad_id)


def _labels(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The names of a head's classes: the manifest's, else as many as the head has outputs."""
    labels = checkpoint.manifest.labels if checkpoint.manifest else None
    if labels is None:
        count = count_labels({name: info.shape for name, info in checkpoint.tensors.items()})
        labels = tuple(f"LABEL_{index}" for index in range(count))
    return labels


def _plan(
    checkpoint: Checkpoint,
    model: Any,
    modules: ModuleMap,
    offered: frozenset[str] | None,
    head: Mapping[str, LinearShape] | None,
) -> KeyPlan:
    """The place of each tensor: under plain names, and under today's names of the modules where those don't fit."""
    names = plain_names(checkpoint.tensors)
    plan = _plan_plain(plain_checkpoint(checkpoint), model, modules, offered, head)
    return plan.under({name: key for key, name in names.items()})


def _plan_plain(
    checkpoint: Checkpoint,
    model: Any,
    modules: ModuleMap,
    offered: frozenset[str] | None,
    head: Mapping[str, LinearShape] | None,
) -> KeyPlan:
    try:
        return plan_keys(checkpoint, modules, offered, head)
    except KeyMismatchError:
        today = renamed_keys(checkpoint, model)
        if today is None or all(key == name for key, name in today.items()):
            raise
        renamed = replace(checkpoint, tensors={today[key]: info for key, info in checkpoint.tensors.items()})
        try:
            plan = plan_keys(renamed, modules, offered, head)
        except KeyMismatchError:
            pass  # what the file's own names lack is the plainer message
        else:
            return plan.under({name: key for key, name in today.items()})
        raise


def _low_rank(site: Site, tensors: Mapping[str, torch.Tensor], module: Any, shape: LinearShape | None) -> LowRank:
    assert shape is not None
    bias = tensors[site.bias] if site.bias else None
    weights = LowRank(tensors[site.a], tensors[site.b], bias, site.scale * output_scale(module, shape))
    if site.magnitude is None:
        return weights
    return fold_magnitude(module, shape, weights, tensors[site.magnitude], norm_scale=site.scale)


def task_model(checkpoint: Checkpoint, task: str, body: Any, pad_token: int) -> Any:
    """The empty task model (:func:`empty_head`) with the labels of a checkpoint."""
    manifest = checkpoint.manifest
    return empty_head(
        body,
        task,
        source=checkpoint.source,
        labels=_labels(checkpoint),
        problem_type=manifest.problem_type if manifest else None,
        pad_token=pad_token,
    )


def largest_values(tensors: Mapping[str, torch.Tensor], source: str) -> dict[str, float]:
    """Each tensor's largest absolute value, all of them numbers.

    Raises:
        NoEffectError: a tensor holds NaN or infinity.
    """
    largest = {}
    for key, tensor in tensors.items():
        # One pass without a copy: the extremes are NaN where any number is, and infinite where one is.
        least, most = map(float, torch.aminmax(tensor)) if tensor.numel() else (0.0, 0.0)
        if not (math.isfinite(least) and math.isfinite(most)):
            raise NoEffectError(f"{source}: {key} holds NaN or infinity; the training run diverged, train again")
        largest[key] = max(-least, most)
    return largest


def _are_tame(lowrank: Mapping[str, LowRank], plan: KeyPlan, largest: Mapping[str, float], dtype: torch.dtype) -> bool:
    """Are the factors so small that no pass can overflow for them?

    A transformer normalises between its blocks, so an update can't grow from block to block. Within one, three updates
    multiply at most (gate, up and down), each by at most its factors' Frobenius norms; with ten thousand for each the
    squares that norms take are still within what float32 and bfloat16 hold (3e38). Not so in float16.
    """
    if dtype is torch.float16 or plan.overrides:
        return False
    for site in plan.sites:
        own = lowrank[site.path]
        norms = largest[site.a] * largest[site.b] * math.sqrt(own.a.numel() * own.b.numel())
        vectors = [float(vector.abs().max()) for vector in (own.bias, own.gain) if vector is not None]
        if not max(own.scale * norms, *vectors, 0.0) <= _TAME:
            return False
    return True


def _check_copies(plan: KeyPlan, tensors: Mapping[str, torch.Tensor], model: Any, source: str) -> None:
    """Parameters of the base that PEFT saved along must be the backbone's own."""
    if not plan.copies:
        return
    # Tied parameters have several names.
    parameters = {
        name.replace(".base_layer.", "."): p.detach() for name, p in model.named_parameters(remove_duplicate=False)
    }
    for path, key in plan.copies.items():
        own, saved = parameters.get(path), tensors[key]
        if own is None:
            raise KeyMismatchError(f"{source}: unexpected: {key}; the backbone has no parameter {path!r}")
        if own.shape != saved.shape:
            raise KeyMismatchError(
                f"{source}: carries {key!r} of shape {list(saved.shape)}, the backbone's is {list(own.shape)}; "
                "adapters with a resized vocabulary need a backbone of that size"
            )
        # The file and the backbone may each have been rounded; both are held to the coarser of the two.
        coarser = max((own.dtype, saved.dtype), key=lambda dtype: torch.finfo(dtype).eps)
        if not torch.allclose(own.cpu().to(coarser).float(), saved.to(coarser).float(), rtol=1e-6, atol=1e-6):
            raise UnsupportedAdapterError(
                f"{source}: carries {key!r} with other values than the backbone's; trained embeddings can't share it"
            )


def _overrides(
    plan: KeyPlan, tensors: Mapping[str, torch.Tensor], model: Any, modules: ModuleMap, dtype: torch.dtype
) -> dict[str, TrainedLinear]:
    overrides = {}
    for path, parameters in plan.overrides.items():
        device = next(model.get_submodule(path).parameters()).device
        placed = {name: tensors[key].to(device=device, dtype=dtype, copy=True) for name, key in parameters.items()}
        overrides[path] = TrainedLinear(placed["weight"], placed.get("bias"), modules.linears[path].transposed)
    return overrides
