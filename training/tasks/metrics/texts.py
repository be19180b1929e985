"""Metrics of generated texts, by the libraries that define them: rouge-score and sacrebleu.

ROUGE (Lin 2004) is from 0 to 1, BLEU (Papineni et al. 2002) and chrF (Popovic 2015) from 0 to 100, as each library has
it. BLEU and chrF are the corpus's, not means over rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
# Thai and Lao, kana, Han.
_SPACELESS = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")
_WORD = re.compile(rf"{_SPACELESS.pattern}|[^\s!-/:-@\[-`{{-~\u00a1-\u00bf\u2000-\u206f\u3000-\u303f\uff00-\uff0f]+")
_FOREIGN_SHARE = 0.1


def sentences(text: str) -> list[str]:
    """A text's sentences by its punctuation and lines, none of them empty."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part and part.strip()]


def rouge(found: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """The mean F-measures of ROUGE-1, -2, -L and -Lsum (sentences on lines of their own), without stemming.

    rouge-score knows the letters a to z and digits alone; where more than a tenth of the references' letters are
    others, every script's words count (characters, in scripts without spaces).
    """
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    scorer = RougeScorer(names, tokenizer=_AnyScript() if is_foreign(golds) else None)
    totals = dict.fromkeys(names, 0.0)
    for text, gold in zip(found, golds, strict=True):
        row = scorer.score("\n".join(sentences(gold)), "\n".join(sentences(text)))
        for name in names:
            totals[name] += row[name].fmeasure
    return {name: total / max(1, len(golds)) for name, total in totals.items()}


def is_foreign(texts: Sequence[str]) -> bool:
    """Are these texts in a script of which rouge-score's own tokenizer would drop much?"""
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    return sum(not letter.isascii() for letter in letters) > _FOREIGN_SHARE * max(1, len(letters))


class _AnyScript:
    """A tokenizer for rouge-score that keeps every script."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def corpus_scores(found: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """sacrebleu's corpus BLEU and chrF2."""
    bleu, chrf = scorers(golds)
    return {
        "bleu": float(bleu.corpus_score(list(found), [list(golds)]).score),
        "chrf": float(chrf.corpus_score(list(found), [list(golds)]).score),
    }


def scorers(golds: Sequence[str]) -> tuple[Any, Any]:
    """sacrebleu's scorers: 13a tokens, single characters where the references are in a script without spaces."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    text = "".join(golds)
    spaceless = len(_SPACELESS.findall(text)) > len(text) / 2
    return BLEU(tokenize="char" if spaceless else "13a"), CHRF()


def signatures(golds: Sequence[str]) -> str:
    """How BLEU and chrF were computed, as sacrebleu asks to report it; they have to be asked once for a score."""
    told = []
    for name, scorer in zip(("bleu", "chrf"), scorers(golds), strict=True):
        scorer.corpus_score(["a"], [["a"]])
        told.append(f"{name} {scorer.get_signature()}")
    return ", ".join(told)


def exact_match(found: Sequence[str], golds: Sequence[str]) -> float:
    """The share of texts that are equal but for white space around and between words."""
    same = sum(text.split() == gold.split() for text, gold in zip(found, golds, strict=True))
    return same / max(1, len(golds))
