"""Summarization: a text becomes a shorter one."""

from __future__ import annotations

from collections.abc import Sequence

from lorary.training.tasks.base import Metrics
from lorary.training.tasks.metrics.texts import is_foreign, rouge, sentences
from lorary.training.tasks.rewriting import Rewriting


class Summarization(Rewriting):
    """Measured by ROUGE, against the text's first three sentences (lead-3)."""

    name = "summarization"
    main_metric = "rougeL"
    source_role = "text"
    target_role = "summary"

    def t5_prefix(self) -> str:
        """As in T5's pretraining (Raffel et al. 2020, appendix D)."""
        return "summarize: "

    def instruction(self) -> str:
        """One sentence."""
        return "Summarize the text."

    def text_metrics(self, found: Sequence[str], golds: Sequence[str]) -> Metrics:
        """ROUGE."""
        return rouge(found, golds)

    def caveats(self, golds: Sequence[str]) -> Sequence[str]:
        """Whether rouge-score's own tokenizer, which knows a to z only, would do."""
        told = "rouge counts the words of every script here; rouge-score's own tokenizer knows a to z only"
        return (told,) if is_foreign(golds) else ()

    def baseline(self, source: str) -> tuple[str, str]:
        """The first three sentences, hard to beat on news (See et al. 2017)."""
        return "lead-3", " ".join(sentences(source)[:3])
