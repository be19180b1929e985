"""Fitting checkpoints to one backbone: each tensor's place by the headers, then factors and heads from the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lorary.adapters.adapter import Adapter, Fit, task_of, with_its_task
from lorary.adapters.base.modules import LinearShape, ModuleMap, linear_shape, output_scale
from lorary.adapters.heads.masked import MaskedHead, MaskedModel, adapt_head, update_head
from lorary.adapters.heads.of_base import HeadsOfBase
from lorary.adapters.heads.task_heads import (
    DECODER,
    LABELLED,
    TASK_CLASSES,
    copy_empty_head,
    count_labels,
    empty_head,
    fill_head,
    in_parts,
    share_empty_body,
)
from lorary.adapters.layer.dora import fold_magnitude
from lorary.adapters.layer.override import TrainedLinear
from lorary.adapters.layer.slots import LowRank
from lorary.adapters.matching.keys import PEFT_PREFIX, KeyPlan, Site, plan_keys
from lorary.adapters.matching.renaming import renamed_keys
from lorary.adapters.matching.soundness import are_tame, check_copies, check_range, largest_values
from lorary.adapters.matching.wrappers import plain_checkpoint, plain_names
from lorary.adapters.proving.golden import check_golden_rows
from lorary.adapters.running.inference import Inference, longest_input
from lorary.adapters.tiers.content import Parts
from lorary.adapters.tiers.weights import Weights
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import KeyMismatchError, NoEffectError, UnsupportedAdapterError


@dataclass(frozen=True)
class Fitter:
    """Fits checkpoints to one backbone; nothing of the backbone changes.

    ``dtype`` is that of heads and whole modules, ``kept`` that of factors in slots.
    """

    inference: Inference
    modules: ModuleMap
    dtype: torch.dtype
    kept: torch.dtype
    masked: MaskedHead
    of_base: HeadsOfBase
    _modules_of: dict[str, frozenset[str]] = field(default_factory=dict, repr=False)  # by task
    _empty: dict[str, dict[int, Any]] = field(default_factory=dict, repr=False)  # task models, by the labels' number

    def fit(self, checkpoint: Checkpoint) -> Fit:
        """Place every key and check every shape, by the files' headers alone.

        Raises what :func:`plan_keys` and :meth:`MaskedHead.get` do, CheckpointError for golden rows that the backbone
        can't read and logits that don't fit the manifest, and NoEffectError for an adapter of embeddings that acts
        after them.
        """
        task = task_of(checkpoint)
        of_base = self._head_of_base(checkpoint, task)
        offered = of_base.offered if of_base else self._offered(checkpoint, task)
        head = of_base.linears if of_base else self._updated_head(checkpoint, task)
        plan = _plan(checkpoint, self.inference.model, self.modules, offered, head)
        if not plan.sites:
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: updates nothing but the head; an adapter of the shared body was expected"
            )
        in_body = (site.path.startswith(self.modules.body_prefix) for site in plan.sites)
        if task == "feature-extraction" and not any(in_body):
            raise NoEffectError(
                f"{checkpoint.source}: acts on {plan.sites[0].path!r} alone, after the states that an adapter for "
                f"{task} is read from; was it trained for another task?"
            )
        if task not in TASK_CLASSES and plan.head and (of_base is None or of_base.offered is None):
            raise UnsupportedAdapterError(
                f"{with_its_task(checkpoint)}: carries a trained head ({', '.join(plan.head)}) for the task {task!r}; "
                f"heads are known for {', '.join(TASK_CLASSES)}"
            )
        if of_base is not None:
            of_base.demand(plan.head, checkpoint.source)
        vocabulary = self.inference.vocabulary
        check_golden_rows(checkpoint, vocabulary, longest_input(self.inference.model))
        return Fit(task, plan, list(labels_of(checkpoint)) if task in LABELLED else None)

    def factors(self, adapter: Adapter, weights: Weights) -> dict[str, LowRank]:
        """An adapter's factors by site, valid as long as ``weights`` are.

        Raises:
            NoEffectError: a tensor holds NaN or infinity, or every B is zero.
            UnsupportedAdapterError: a parameter of the base that was saved along isn't the backbone's, or factors are
                too large for the dtype that they are kept in.
        """
        source, tensors = adapter.source, weights.tensors
        largest = largest_values(tensors, source)
        check_copies(adapter.plan, tensors, self.inference.model, source)
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
        check_range(lowrank, self.kept, source)
        adapter.content.tame = are_tame(lowrank, adapter.plan, largest, self.dtype)
        return lowrank

    def parts(self, adapter: Adapter, weights: Weights) -> Parts:
        """An adapter's head and the modules it trained whole, in memory of their own. Raises as :func:`fill_head`."""
        plan, head = adapter.plan, None
        empty = self._empty_head(weights.checkpoint, adapter.task)
        of_base = self._head_of_base(weights.checkpoint, adapter.task)
        own = {name: weights.tensors[key].clone() for name, key in plan.head.items()}
        if of_base is not None:
            head = adapt_head(of_base, self._head_updates(adapter, weights, of_base.model), own, adapter.source)
        elif empty is not None:
            head = fill_head(
                empty,
                self.inference.body,
                own,
                source=with_its_task(adapter.checkpoint),
                device=self.inference.device,
                dtype=self.dtype,
                of_base=self.of_base,
            )
            update_head(head.model, self._head_updates(adapter, weights, head.model))
        return Parts(_overrides(plan, weights.tensors, self.inference.model, self.modules, self.dtype), head)

    def _head_updates(self, adapter: Adapter, weights: Weights, model: Any) -> dict[str, LowRank]:
        """The factors that an adapter has in its head, by path in the task model."""
        updates = {}
        for site in adapter.plan.head_sites:
            module = model.get_submodule(site.path)
            updates[site.path] = _low_rank(site, weights.tensors, module, linear_shape(module))
        return updates

    def _updated_head(self, checkpoint: Checkpoint, task: str) -> dict[str, LinearShape]:
        """The linear modules of a task's head that a checkpoint has factors for, as PEFT's ``all-linear`` makes them.

        Their own weights are the base's; where it has none (DistilBERT's), filling the head says so.
        """
        if task not in TASK_CLASSES:
            return {}
        empty = self._empty_head(checkpoint, task)
        body = f"{empty.base_model_prefix}."
        named = {name.partition(".lora_")[0] for name in plain_names(checkpoint.tensors).values() if ".lora_" in name}
        beside = {name: module for name, module in empty.named_modules() if not name.startswith(body)}
        shapes = {name: linear_shape(module) for name, module in beside.items() if f"{PEFT_PREFIX}{name}" in named}
        return {name: shape for name, shape in shapes.items() if shape is not None and name not in self.modules}

    def _head_of_base(self, checkpoint: Checkpoint, task: str) -> MaskedModel | None:
        writes = checkpoint.manifest is not None and checkpoint.manifest.filling is not None
        return self.masked.get(checkpoint.source) if task == "fill-mask" and not writes else None

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
        labels, manifest, body = labels_of(checkpoint), checkpoint.manifest, self.inference.body
        of_task = self._empty.setdefault(task, {})
        known = of_task.get(len(labels))
        if known is None:  # to build one takes longer than all else that a small adapter's load does
            known = task_model(checkpoint, task, body, self.inference.pad_id)
            if others := list(of_task.values()):
                share_empty_body(known, others[0], body)
            of_task[len(labels)] = known
        return copy_empty_head(known, body, labels, manifest.problem_type if manifest else None)


def task_model(checkpoint: Checkpoint, task: str, body: Any, pad_token: int) -> Any:
    """The empty task model (:func:`empty_head`) with the labels of a checkpoint."""
    manifest = checkpoint.manifest
    return empty_head(
        body,
        task,
        source=checkpoint.source,
        labels=labels_of(checkpoint),
        problem_type=manifest.problem_type if manifest else None,
        pad_token=pad_token,
    )


def labels_of(checkpoint: Checkpoint) -> tuple[str, ...]:
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


def _overrides(
    plan: KeyPlan, tensors: Mapping[str, torch.Tensor], model: Any, modules: ModuleMap, dtype: torch.dtype
) -> dict[str, TrainedLinear]:
    overrides = {}
    for path, parameters in plan.overrides.items():
        device = next(model.get_submodule(path).parameters()).device
        placed = {name: tensors[key].to(device=device, dtype=dtype, copy=True) for name, key in parameters.items()}
        overrides[path] = TrainedLinear(placed["weight"], placed.get("bias"), modules.linears[path].transposed)
    return overrides
