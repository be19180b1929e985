"""One loss for one step, however its rows are cut up: into batches that are accumulated, or over processes.

A model's own loss is the mean over one batch. Batches of a step don't count the same, though: the last one of an epoch
has fewer rows, and a batch of short sentences fewer tagged words. transformers leaves the weighing to the model, and
most heads don't do it: their losses would even be added up, not averaged. Here each batch counts by what its mean is
over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from lorary.training.fitting.losses import IGNORED

_ITEMS = "items_of_batch"


def normalise(trainer: Any) -> None:
    """Make ``trainer`` average its loss over all items of a step; one that ``averages_steps`` does so itself.

    A loss of our own (:class:`lorary.training.fitting.losses.Loss`) says by ``share`` what its mean is over.
    """
    if getattr(trainer, "averages_steps", False):
        return
    # A batch of pairs has two sequences a row, and TRL's batches are left as accelerate makes them.
    takes_repeated_out = not any(kind.__module__.startswith("trl.") for kind in type(trainer).__mro__)
    shifted = bool(getattr(trainer, "_loss_shifts_labels", False))
    share = getattr(trainer.compute_loss_func, "share", None)
    take, loss_of, accelerator = trainer.get_batch_samples, trainer.compute_loss, trainer.accelerator

    def get_batch_samples(batches: Iterator[Any], count: int, device: torch.device) -> tuple[list[Any], Any]:
        taken, _ = take(batches, count, device)
        if not taken:
            return taken, None
        if takes_repeated_out:
            _drop_repeated(taken, accelerator, len(trainer.train_dataset), trainer.args.per_device_train_batch_size)
        for batch in taken:
            if _ITEMS not in batch:
                batch[_ITEMS] = share(batch["labels"]) if share else _items(batch, shifted)
        total = sum(batch[_ITEMS] for batch in taken).to(device)
        return taken, accelerator.gather(total).sum() if accelerator.num_processes > 1 else total

    def compute_loss(
        model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        items = inputs.pop(_ITEMS, None)
        result = loss_of(model, inputs, return_outputs)
        if items is None or num_items_in_batch is None:
            return result
        # Processes' gradients are averaged, each one's loss is a part of a sum.
        weight = items / num_items_in_batch * accelerator.num_processes
        return (result[0] * weight, result[1]) if return_outputs else result * weight

    trainer.get_batch_samples, trainer.compute_loss = get_batch_samples, compute_loss
    trainer.loss_is_scaled_for_ga = True


def _items(batch: Mapping[str, Any], shifted: bool) -> torch.Tensor:
    """What a batch's loss is the mean over: labels that count, or rows where labels go by other names."""
    labels = batch.get("labels")
    if labels is None:
        return torch.tensor(len(next(value for value in batch.values() if torch.is_tensor(value))))
    if labels.is_floating_point():
        return torch.tensor(labels.numel())  # numbers to learn, or an answer for each label: every one counts
    return (labels[..., 1:] if shifted else labels).ne(IGNORED).sum()


def _drop_repeated(taken: list[Any], accelerator: Any, rows: int, size: int) -> None:
    """Take out what accelerate repeats of the epoch's ``rows`` at its end, so that all processes have as many of them.

    accelerate's own count of those that remain is lost where a run goes on in the middle of an epoch.
    """
    remaining = rows % (size * accelerator.num_processes)
    if accelerator.num_processes == 1 or not accelerator.gradient_state.end_of_dataloader or not remaining:
        return
    real = min(size, max(0, remaining - accelerator.process_index * size))
    last = taken[-1]
    kept = max(1, real)  # a process without rows of its own has to take part all the same
    for name, value in last.items():
        if torch.is_tensor(value):
            last[name] = value[:kept]
    if real == 0:
        last[_ITEMS] = torch.tensor(0)
