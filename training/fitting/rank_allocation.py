"""AdaLoRA's part in the steps of a run: PEFT's allocator takes ranks away, and its state goes into the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from lorary.hub.errors import TrainingError
from lorary.training.data import Note
from lorary.training.recipe.adalora import Schedule

_FILE = "allocator.safetensors"
_AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
_KEPT = "kept"
_ADAPTER = "default"
ORTHOGONALITY = 0.5
"""How much it weighs that A and B be orthogonal, unless the recipe says; PEFT's own."""


class RankAllocation(TrainerCallback):
    """Calls PEFT's allocator after each step, before its gradients are gone.

    Which ranks are kept stands here, and not in PEFT's config, by which checkpoints would lose the others: until the
    last allocation they may come back.

    Args:
        model: a ``PeftModel`` with AdaLoRA's layers.
        peft: the recipe's settings.
        note: is told of the ranks, when they are final.
    """

    def __init__(self, model: Any, peft: Mapping[str, Any], note: Note) -> None:
        self._model = model
        self._peft = peft
        self._note = note
        self._kept: dict[str, list[bool]] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the schedule, and put the allocator's state back where the run goes on.

        Raises:
            TrainingError: the run has too few steps.
        """
        schedule = Schedule.of(self._peft, state.max_steps)
        if schedule.problem:
            raise TrainingError(schedule.problem)
        config = self._model.peft_config[_ADAPTER]
        config.tinit, config.tfinal, config.total_step = schedule.tinit, schedule.tfinal, schedule.steps
        self._kept = None
        self._model.base_model.rankallocator.reset_ipt()
        if state.global_step:
            self._restore(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Weigh the ranks by the step's gradients, and take some away when it is time."""
        tuner, config = self._model.base_model, self._model.peft_config[_ADAPTER]
        last = config.total_step - config.tfinal
        if state.global_step < last and getattr(optimizer, "step_was_skipped", False):
            return  # float16's gradients overflowed: they would weigh infinitely from now on
        for name, parameter in self._parameters().items():
            if parameter.grad is None and ".lora_" in name:
                parameter.grad = torch.zeros_like(parameter)  # a part that the step's rows didn't reach
        config.rank_pattern = self._kept
        tuner.update_and_allocate(state.global_step)
        self._kept, config.rank_pattern = config.rank_pattern, None
        if state.global_step == last and self._kept:
            ranks = [sum(kept) for kept in self._kept.values()]
            self._note(
                f"adalora's ranks are final after step {last + 1} of {config.total_step}: {min(ranks)} to "
                f"{max(ranks)}, {sum(ranks)} in {len(ranks)} modules, {ranks.count(0)} of them without any"
            )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the allocator's state into the new checkpoint, before its files are listed.

        Raises:
            OSError: the disk is full.
        """
        if not state.is_world_process_zero:
            return
        allocator = self._model.base_model.rankallocator
        tensors = {
            f"{what}.{name}": tensor.contiguous()
            for what in _AVERAGES
            for name, tensor in getattr(allocator, what).items()
        }
        tensors |= {f"{_KEPT}.{name}": torch.tensor(kept) for name, kept in (self._kept or {}).items()}
        save_file(tensors, Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE)

    def _restore(self, path: Path) -> None:
        allocator, parameters = self._model.base_model.rankallocator, self._parameters()
        kept: dict[str, list[bool]] = {}
        for key, tensor in load_file(path).items():
            what, _, name = key.partition(".")
            if what == _KEPT:
                kept[name] = tensor.tolist()
            else:
                getattr(allocator, what)[name] = tensor.to(parameters[name].device)
                # Of one step alone, and so anew in the next; that it is there says that there are averages.
                allocator.ipt[name] = torch.zeros_like(parameters[name])
        self._kept = kept or None

    def _parameters(self) -> dict[str, torch.Tensor]:
        """The trained parameters, by the names that the allocator knows them by."""
        return {name: p for name, p in self._model.get_base_model().named_parameters() if p.requires_grad}


def keep_orthogonal(trainer: Any, model: Any, weight: float) -> None:
    """Let each step's gradients also draw A and B to be orthogonal, whatever batches the step is cut into.

    PEFT has it in the model's loss: of each batch, and of the validation rows as well. So PEFT's own weight is 0 here,
    and the losses that are shown are the task's.
    """
    if not weight:
        return
    factors = [
        (parameter, "lora_A" in name)
        for name, parameter in model.get_base_model().named_parameters()
        if f"lora_A.{_ADAPTER}" in name or f"lora_B.{_ADAPTER}" in name
    ]
    step = trainer.training_step

    def training_step(*arguments: Any, **settings: Any) -> torch.Tensor:
        loss: torch.Tensor = step(*arguments, **settings)
        if trainer.accelerator.sync_gradients:
            scaler = trainer.accelerator.scaler
            _draw(factors, weight * (scaler.get_scale() if scaler is not None else 1.0))
        return loss

    trainer.training_step = training_step


def _draw(factors: list[tuple[torch.Tensor, bool]], weight: float) -> None:
    """Add the gradient of the mean distance of A A^T and B^T B from the identity."""
    apart = []
    with torch.enable_grad():
        for factor, rows in factors:
            product = factor @ factor.T if rows else factor.T @ factor
            apart.append(torch.norm(product - torch.eye(len(product), device=product.device)))
        wanted = [factor for factor, _ in factors]
        device = apart[0].device
        gradients = torch.autograd.grad(weight * torch.stack([one.to(device) for one in apart]).mean(), wanted)
    for factor, gradient in zip(wanted, gradients, strict=True):
        factor.grad = gradient if factor.grad is None else factor.grad + gradient


def judge_final_ranks(trainer: Any, peft: Mapping[str, Any]) -> None:
    """Let no epoch count as the best one, nor towards early stopping, before the ranks are final: it has too many."""
    judge = trainer._determine_best_metric

    def determine(*arguments: Any, **settings: Any) -> bool:
        final = trainer.state.global_step > Schedule.of(peft, trainer.state.max_steps).last
        return final and bool(judge(*arguments, **settings))

    trainer._determine_best_metric = determine
