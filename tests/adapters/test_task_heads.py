"""Every task's head on one shared body: equal to transformers' own task class in PEFT's hands, alone and mixed."""

import pytest
import torch

from lorary.adapters import Backbone
from tiny import make_adapter, peft_reference

TEXTS = ["profit rose the bank", "patient with asthma and cancer", "free cash", "the dog ran with the cat"]
CASES = [
    (family, task)
    for family in ("bert", "roberta", "distilbert", "gpt2", "llama", "t5", "bart")
    for task in ("text-classification", "token-classification", "question-answering")
    if (family, task) != ("bart", "token-classification")  # transformers has no such class
]


def lora(family, task):
    """Heads that PEFT doesn't save unasked."""
    names = {
        ("t5", "text-classification"): "classification_head",
        ("bart", "text-classification"): "classification_head",
    }
    return {"modules_to_save": [names[family, task]]} if (family, task) in names else {}


def adapters_of(backbone, base, folder, family, *tasks):
    """Load an adapter of each task, named by it; gives the adapters' folders."""
    made = {}
    for seed, task in enumerate(tasks, start=1):
        made[task] = make_adapter(base, folder / task, task=task, seed=seed, **lora(family, task))
        backbone.load(made[task])
    return made


def logits_of(output):
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return output.logits


@pytest.mark.parametrize(("family", "task"), CASES)
def test_every_head_equals_its_own_class(bases, tmp_path, family, task):
    backbone = Backbone.from_pretrained(str(bases(family)))
    made = adapters_of(backbone, bases(family), tmp_path, family, task)
    reference = peft_reference(bases(family), made[task], task=task)
    for text in TEXTS[:2]:
        inputs = backbone.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            want = logits_of(reference(**inputs))[0]
        got = backbone.logits(inputs["input_ids"].tolist(), task)[0]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
