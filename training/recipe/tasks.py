"""What each task says about recipes: the columns that it takes, and the settings that it begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TaskFacts:
    """A task as recipes know it.

    ``forms`` are the sets of roles that its rows may have, ``columns`` the default columns of the first of them;
    ``beside`` are roles that rows of each form but running text may have too: what only a chat template is told of.
    ``defaults`` holds a recipe's sections with the task's own settings, ``role_defaults`` those of rows with a role.
    ``prompts``: it has settings for how prompts are put. ``rewrites``: it makes one text of another.
    ``corpus``: it can be trained on running text without labels, which is what strategy ``continual`` asks for;
    ``masks``: it hides tokens. ``strategy`` is the default one.
    ``scored``: its main metric is another than the loss, and takes one pass over the rows.
    ``fewest_validation``: with fewer validation rows there are none, unless the recipe asks for them.
    ``weighted``: its loss takes class weights, and its head has a dropout; ``smoothed``: it takes label smoothing.
    """

    forms: tuple[frozenset[str], ...]
    columns: Mapping[str, str]
    defaults: Mapping[str, Mapping[str, Any]]
    role_defaults: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    beside: frozenset[str] = frozenset()
    prompts: bool = False
    corpus: bool = False
    masks: bool = False
    strategy: str = "fine-tune"
    rewrites: bool = False
    scored: bool = False
    fewest_validation: int = 8
    weighted: bool = False
    smoothed: bool = False

    @property
    def roles(self) -> frozenset[str]:
        """Every role that the task knows."""
        return self.beside.union(*self.forms)

    def takes(self, roles: frozenset[str]) -> bool:
        """May rows have these roles?"""
        return roles in self.forms or ("text" not in roles and roles - self.beside in self.forms)


def _form(*roles: str) -> frozenset[str]:
    return frozenset(roles)


def _rewriting(source: str, target: str) -> TaskFacts:
    return TaskFacts(
        forms=(_form(source, target),),
        columns={source: source, target: target},
        defaults={
            "training": {
                "epochs": 3, "batch_size": 8, "learning_rate": 5e-4, "max_length": 512, "max_target_length": 128,
            },
            "lora": {"rank": 16},
            "generation": {"rows": 200},
        },
        prompts=True,
        rewrites=True,
    )  # fmt: skip


# Weight decay is BERT's (Devlin et al. 2019) where a head is trained from nothing; generation has none (Dettmers et al.
# 2023). On an adapter it pulls the low-rank product, so the model, back towards the base.
# On a few hundred rows eight epochs are over before a head that is trained from nothing is right, and the loss on a
# dozen rows ends them sooner still (Mosbach et al. 2021, "On the Stability of Fine-tuning BERT"; docs/benchmarks.md).
# Learning rates are about ten times those of full fine-tuning ("LoRA Without Regret", 2025; Hu et al. 2021, table 9).
TASK_FACTS: Mapping[str, TaskFacts] = {
    "text-classification": TaskFacts(
        forms=(_form("text", "label"), _form("text", "text_pair", "label")),
        columns={"text": "text", "label": "label"},
        defaults={
            "training": {
                "epochs": 8,
                "min_steps": 160,
                "batch_size": 16,
                "learning_rate": 5e-4,
                "weight_decay": 0.01,
                "max_length": 128,
            },
            "lora": {"rank": 8},
        },
        scored=True,
        fewest_validation=30,
        weighted=True,
        smoothed=True,
    ),
    "token-classification": TaskFacts(
        forms=(_form("tokens", "tags"),),
        columns={"tokens": "tokens", "tags": "tags"},
        defaults={
            "training": {
                "epochs": 10,
                "batch_size": 16,
                "learning_rate": 3e-4,
                "max_length": 128,
                "weight_decay": 0.01,
            },
            "lora": {"rank": 8},
        },
        scored=True,
        weighted=True,
        smoothed=True,
    ),
    "question-answering": TaskFacts(
        forms=(
            _form("question", "context", "answers"),
            _form("question", "context", "answer", "answer_start"),
            _form("question", "context", "answer"),
        ),
        columns={"question": "question", "context": "context", "answers": "answers"},
        defaults={
            "training": {
                "epochs": 5,
                "batch_size": 16,
                "learning_rate": 5e-4,
                "max_length": 384,
                "max_answer_length": 30,
            },
            "lora": {"rank": 8},
        },
        scored=True,
    ),
    "feature-extraction": TaskFacts(
        forms=(
            _form("text", "positive"),
            _form("text", "positive", "negative"),
            _form("text", "text_pair", "score"),
        ),
        columns={"text": "text", "positive": "positive"},
        defaults={
            "training": {"epochs": 5, "batch_size": 32, "learning_rate": 5e-4, "max_length": 128},
            "lora": {"rank": 8},
            "embedding": {"normalize": True, "temperature": 0.05},
        },
        scored=True,
    ),
    "text-generation": TaskFacts(
        forms=(
            _form("prompt", "completion"),
            _form("prompt", "input", "completion"),
            _form("messages"),
            _form("text"),
            _form("prompt", "chosen", "rejected"),
            _form("chosen", "rejected"),
        ),
        columns={"prompt": "prompt", "completion": "completion"},
        beside=_form("tools", "chat_template_kwargs"),
        defaults={
            "training": {"epochs": 3, "batch_size": 8, "learning_rate": 2e-4, "max_length": 1024},
            "lora": {"rank": 16},
        },
        # Pairs need smaller steps than rows do, and the ratio of two likelihoods is no place for dropout.
        role_defaults={
            "chosen": {
                "training": {"epochs": 2, "learning_rate": 5e-5},
                "lora": {"dropout": 0.0},
                "preference": {"beta": 0.1, "loss": "sigmoid"},
            }
        },
        prompts=True,
        corpus=True,
    ),
    # Blocks rather than rows, as in BERT's, RoBERTa's and T5's own pretraining. The base says how much is hidden.
    "fill-mask": TaskFacts(
        forms=(_form("text"),),
        columns={"text": "text"},
        defaults={
            "training": {
                "epochs": 3,
                "batch_size": 16,
                "learning_rate": 5e-4,
                "max_length": 256,
            },
            "lora": {"rank": 16},
        },
        corpus=True,
        masks=True,
        strategy="continual",
    ),
    "summarization": _rewriting("text", "summary"),
    "translation": _rewriting("source", "target"),
}
"""The tasks that can be trained, by name."""
