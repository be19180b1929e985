"""An adapter made ready for one backbone: matched, checked, and held on the host until a slot takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lorary.adapters.dora import fold_magnitude
from lorary.adapters.golden import load_tensors, read_golden
from lorary.adapters.heads import TASK_CLASSES, TASK_OF_PEFT_TYPE, TaskHead, count_labels, empty_head, fill_head
from lorary.adapters.keys import KeyPlan, Site, plan_keys
from lorary.adapters.modules import ModuleMap, output_scale
from lorary.adapters.override import TrainedLinear
from lorary.adapters.renaming import renamed_keys
from lorary.adapters.slots import LowRank
from lorary.adapters.support import check_supported
from lorary.hub.checkpoint import WEIGHTS_NAME, Checkpoint
from lorary.hub.errors import KeyMismatchError, NoEffectError, UnsupportedAdapterError
from lorary.hub.manifest import Manifest


@dataclass(eq=False, repr=False)
class Adapter:
    """One version of an adapter, fitted to a backbone.

    ``lowrank`` holds the factors per site on the host; ``overrides`` the linears that were trained whole, and ``head``
    the task head, both on the backbone's device.
    """

    name: str
    digest: str
    source: str
    task: str
    manifest: Manifest | None
    plan: KeyPlan
    lowrank: Mapping[str, LowRank]
    overrides: Mapping[str, TrainedLinear]
    head: TaskHead | None
    golden: list[torch.Tensor] | None = None
    notes: tuple[str, ...] = ()
    reference: str | None = None
    pinned: bool = field(default=False)

    def rank_at(self, path: str) -> int:
        """The adapter's rank at a site, 0 where it has none."""
        site = self.lowrank.get(path)
        return site.rank if site is not None else 0

    @property
    def rank(self) -> int:
        """The largest rank at any site."""
        return max(site.rank for site in self.lowrank.values())

    @property
    def labels(self) -> list[str] | None:
        """The names of the head's classes, in order."""
        return list(self.head.model.config.id2label.values()) if self.head else None


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


def build_adapter(
    checkpoint: Checkpoint,
    *,
    name: str,
    model: Any,
    body: Any,
    modules: ModuleMap,
    device: torch.device,
    dtype: torch.dtype,
    pad_token: int = 0,
) -> Adapter:
    """Fit a checkpoint to a backbone: every key placed, every shape checked, the head built.

    Nothing of the backbone changes. Raises what :func:`check_supported`, :func:`plan_keys` and :func:`fill_head` do,
    and NoEffectError for an adapter whose B matrices are all zero.
    """
    check_supported(checkpoint)
    task = task_of(checkpoint)
    manifest = checkpoint.manifest
    empty = task_model(checkpoint, task, body, pad_token) if task in TASK_CLASSES else None
    # A task model may lack a part of the body (BERT's pooler, in tagging), and then nothing is missing there.
    offered = frozenset(name for name, _ in empty.named_modules()) if empty is not None else None
    plan = _plan(checkpoint, model, modules, offered)
    tensors = load_tensors(checkpoint.files[WEIGHTS_NAME])
    check_finite(tensors, checkpoint.source)
    _check_copies(plan, tensors, model, checkpoint.source)
    lowrank = {site.path: _low_rank(site, tensors, model, modules) for site in plan.sites}
    if not any(weights.acts for weights in lowrank.values()):
        raise NoEffectError(
            f"{checkpoint.source}: every lora_B is zero, so the adapter does nothing; "
            "it was saved untrained, or damaged"
        )
    head = None
    if empty is not None:
        own = {name: tensors[key] for name, key in plan.head.items()}
        head = fill_head(empty, body, own, source=checkpoint.source, device=device, dtype=dtype)
    elif plan.head:
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: carries a trained head ({', '.join(plan.head)}) for the task {task!r}; "
            f"heads are known for {', '.join(TASK_CLASSES)}"
        )
    return Adapter(
        name=name,
        digest=checkpoint.digest,
        source=checkpoint.source,
        task=task,
        manifest=manifest,
        plan=plan,
        lowrank=lowrank,
        overrides=_overrides(plan, tensors, model, modules, dtype),
        head=head,
        golden=read_golden(checkpoint),
    )


def _plan(checkpoint: Checkpoint, model: Any, modules: ModuleMap, offered: frozenset[str] | None) -> KeyPlan:
    """The place of each tensor, under today's names of the modules where the file's don't fit."""
    try:
        return plan_keys(checkpoint, modules, offered)
    except KeyMismatchError:
        today = renamed_keys(checkpoint, model)
        if today is None or all(key == name for key, name in today.items()):
            raise
        renamed = replace(checkpoint, tensors={today[key]: info for key, info in checkpoint.tensors.items()})
        try:
            plan = plan_keys(renamed, modules, offered)
        except KeyMismatchError:
            pass  # what the file's own names lack is the plainer message
        else:
            return plan.under({name: key for key, name in today.items()})
        raise


def _low_rank(site: Site, tensors: Mapping[str, torch.Tensor], model: Any, modules: ModuleMap) -> LowRank:
    bias = tensors[site.bias] if site.bias else None
    module, shape = model.get_submodule(site.path), modules.site(site.path)
    assert shape is not None
    weights = LowRank(tensors[site.a], tensors[site.b], bias, site.scale * output_scale(module, shape))
    if site.magnitude is None:
        return weights
    return fold_magnitude(module, shape, weights, tensors[site.magnitude], norm_scale=site.scale)


def task_model(checkpoint: Checkpoint, task: str, body: Any, pad_token: int) -> Any:
    """The empty task model (:func:`empty_head`) with the labels of a checkpoint."""
    manifest = checkpoint.manifest
    labels = manifest.labels if manifest else None
    if labels is None:
        count = count_labels({name: info.shape for name, info in checkpoint.tensors.items()})
        labels = tuple(f"LABEL_{index}" for index in range(count))
    return empty_head(
        body,
        task,
        source=checkpoint.source,
        labels=labels,
        problem_type=manifest.problem_type if manifest else None,
        pad_token=pad_token,
    )


def check_finite(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse tensors that aren't floating-point numbers, all of them finite.

    Raises:
        UnsupportedAdapterError: another dtype.
        NoEffectError: NaN or infinity.
    """
    for key, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise UnsupportedAdapterError(f"{source}: {key!r} holds {tensor.dtype}; expected floating-point weights")
    broken = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor.float()).all())]
    if broken:
        raise NoEffectError(f"{source}: {broken[0]} holds NaN or infinity; the training run diverged, train again")


def _check_copies(plan: KeyPlan, tensors: Mapping[str, torch.Tensor], model: Any, source: str) -> None:
    """Parameters of the base that PEFT saved along must be the backbone's own."""
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
        placed = {name: tensors[key].to(device=device, dtype=dtype) for name, key in parameters.items()}
        overrides[path] = TrainedLinear(placed["weight"], placed.get("bias"), modules.linears[path].transposed)
    return overrides
