"""Translation: a text becomes the same text in another language."""

from __future__ import annotations

from collections.abc import Sequence

from lorary.training.tasks.base import Metrics
from lorary.training.tasks.metrics.texts import corpus_scores, signatures
from lorary.training.tasks.rewriting import Rewriting


class Translation(Rewriting):
    """Measured by BLEU and chrF, against a copy of the source."""

    name = "translation"
    main_metric = "bleu"
    source_role = "source"
    target_role = "target"

    def t5_prefix(self) -> str | None:
        """As in T5's pretraining (Raffel et al. 2020, appendix D), where the languages' names are known."""
        data = self.recipe.data
        return f"translate {data.source_lang} to {data.target_lang}: " if data.source_lang else None

    def instruction(self) -> str:
        """One sentence, with the languages' names where they are known."""
        data = self.recipe.data
        return (
            "Translate the text" + (f" from {data.source_lang} to {data.target_lang}" if data.source_lang else "") + "."
        )

    def text_metrics(self, found: Sequence[str], golds: Sequence[str]) -> Metrics:
        """BLEU and chrF."""
        return corpus_scores(found, golds)

    def caveats(self, golds: Sequence[str]) -> Sequence[str]:
        """sacrebleu's signatures, without which a BLEU means little (Post 2018)."""
        return (f"sacrebleu's signatures: {signatures(golds)}",)

    def baseline(self, source: str) -> tuple[str, str]:
        """The source as it stands: names and numbers are right already."""
        return "copy", source
