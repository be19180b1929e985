"""What a model's last layer makes of rows, before any head: [tokens, hidden] of each."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from lorary.training.fitting.evaluate import logits_by_row
from lorary.training.fitting.losses import IGNORED
from lorary.training.tasks import Encoded, Task


class _Body:
    """A task model that answers with its last layer's states; an encoder-decoder with its encoder's."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, **batch: torch.Tensor) -> BaseModelOutput:
        if self._model.config.is_encoder_decoder:
            return BaseModelOutput(last_hidden_state=self._model.get_encoder()(**batch).last_hidden_state)
        return BaseModelOutput(last_hidden_state=self._model(**batch, output_hidden_states=True).hidden_states[-1])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def states_of(model: Any, task: Task, rows: Encoded, tokenizer: Any, batch_size: int) -> list[torch.Tensor]:
    """The states of each row, float32 on the CPU, as its task is read off them.

    Returns:
        For each row [1, hidden], the mean over its tokens (Reimers and Gurevych 2019); of tagging [words, hidden], each
        tagged word's first piece.
    """
    found: dict[int, torch.Tensor] = {}
    for place, (states,) in logits_by_row(_Body(model), task, rows, tokenizer, batch_size):
        targets = rows.features[place]["labels"]
        if task.name == "token-classification":
            found[place] = states[tagged(targets)].float().cpu()
        else:
            found[place] = states.float().mean(0, keepdim=True).cpu()
    return [found[place] for place in range(len(rows.examples))]


def tagged(labels: list[int]) -> list[int]:
    """The places of the tokens that carry a word's tag."""
    return [place for place, label in enumerate(labels) if label != IGNORED]
