"""What a metric's name says about it: which way is better, and which one to show when there is room for one."""

from __future__ import annotations

from collections.abc import Collection, Mapping

_LOWER_IS_BETTER = frozenset({"loss", "perplexity", "wer", "cer", "mse", "mae", "rmse", "error"})
_HEADLINES = (
    "f1", "f1_macro", "macro_f1", "accuracy", "exact_match", "rougeL", "rougeLsum", "rouge1", "rouge2", "bleu", "chrf",
    "spearman", "mrr@10", "reward_accuracy", "perplexity", "loss",
)  # fmt: skip

SPLITS: Mapping[str, str] = {
    "test": "trained",
    "validation": "on validation rows",
    "train": "on training rows",
    "untrained": "untrained",
    "majority": "majority class",
    "mean": "training mean",
    "unigram": "unigrams",
}
"""The splits of a version's metrics by their names for people: the trained adapter, then what it is compared with."""

OWN_SPLITS = frozenset({"test", "validation", "train"})
"""The splits with figures of the version itself; those of any other are what it is compared with."""


def splits_of(metrics: Collection[str]) -> list[str]:
    """The splits that there are, in the order in which they are told: those with a name for people, then the others."""
    return [split for split in dict.fromkeys((*SPLITS, *metrics)) if split in metrics]


def lower_is_better(metric: str) -> bool:
    """True for losses, perplexities and error rates, also as the last word of a name such as ``eval_loss``."""
    if metric.startswith("f1"):
        return False  # an entity type may be called error
    return metric.lower().rpartition("_")[2] in _LOWER_IS_BETTER


def headline(metrics: Mapping[str, float]) -> tuple[str, float] | None:
    """The one metric that stands for a version in a table: its name and value, None when there are none."""
    return next(((name, metrics[name]) for name in most_telling(metrics)), None)


def most_telling(names: Collection[str]) -> list[str]:
    """Metrics' names, each once, those first that stand for a version in a table."""
    return [name for name in dict.fromkeys((*_HEADLINES, *sorted(names))) if name in names]
