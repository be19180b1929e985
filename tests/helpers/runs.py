"""Trained folders as PEFT alone loads them, and runs before their first step."""

from __future__ import annotations

from typing import Any

import torch

from lorary.adapters.base.quantization import guard_cpu
from lorary.adapters.proving.golden import condense
from lorary.hub.checkpoint import read_checkpoint
from lorary.training.data import load_data
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter

SHORT = {"training.max_steps": 3, "training.epochs": 1}
"""Settings of a run that is over in a second."""


def prepared(recipe: Any) -> Any:
    """A run before its first step."""
    return prepare(recipe, load_data(recipe), Reporter())


def batch_of(ready: Any, rows: int = 4) -> Any:
    """A batch of the run's first training rows."""
    return ready.task.collator(ready.base.tokenizer)([dict(feature) for feature in ready.train.features[:rows]])


def answers(model: Any, batch: Any) -> torch.Tensor:
    """A model's logits, without dropout and gradients."""
    model.eval()
    with torch.no_grad():
        return model(**batch).logits


def peft_logits(folder: Any, base: str, task: str, **kwargs: Any) -> list[torch.Tensor]:
    """The golden rows' logits of a trained folder, as a plain user of PEFT gets them."""
    import transformers
    from peft import PeftModel

    manifest = read_checkpoint(folder).manifest
    auto = {
        "text-classification": transformers.AutoModelForSequenceClassification,
        "token-classification": transformers.AutoModelForTokenClassification,
        "text-generation": transformers.AutoModelForCausalLM,
        "fill-mask": transformers.AutoModelForMaskedLM,
    }[task]
    labels = {"num_labels": len(manifest.labels)} if manifest.labels else {}
    model = PeftModel.from_pretrained(auto.from_pretrained(base, **labels, **kwargs), folder).eval()
    guard_cpu(model)
    found = []
    for row in manifest.golden_rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0]
        found.append(condense(task, logits))
    return found


def golden(folder: Any) -> list[torch.Tensor]:
    """A trained folder's golden logits."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "golden.safetensors")
    return [tensors[str(index)] for index in range(len(tensors))]
