"""What tasks share that are measured by generated texts, beside the loss on the texts that were to come."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorary.adapters import Backbone
from lorary.adapters.text.asked import apart
from lorary.adapters.text.generate import Manner, PromptRow, prompt_tokens
from lorary.training.data import Example, Note
from lorary.training.fitting.evaluate import outcomes as token_outcomes
from lorary.training.fitting.writing import spread, write_texts
from lorary.training.tasks.base import Answer, Metrics, Task
from lorary.training.tasks.metrics.tokens import TokenScore, token_metrics
from lorary.training.tasks.rows.conversation import as_told
from lorary.training.tasks.rows.encoded import Encoded


@dataclass(frozen=True)
class Written:
    """What a model makes of a row: how well it predicts the target, and its own text (None where none was asked)."""

    score: TokenScore
    text: str | None


class WritesTexts(Task):
    """A task with a prompt and one right text for each row, which is its gold.

    ``manner`` and ``settings`` are what the loader will know from the manifest: how the prompt is put and generated
    from. Set by ``meet`` or ``encode``.
    """

    scored_in_one_pass = False
    gate_rows = 16  # generated twice, one by one

    manner: Manner
    settings: dict[str, Any]
    note: Note

    @abstractmethod
    def text_metrics(self, found: Sequence[str], golds: Sequence[str]) -> Metrics:
        """The metrics of generated texts."""

    @abstractmethod
    def asked(self, example: Example) -> PromptRow:
        """What a row asks, as ``generate`` takes it."""

    def outcomes(self, model: Any, rows: Encoded, tokenizer: Any, batch_size: int) -> list[Written]:
        """The score of each row, and a text of as many as ``generation.rows`` says, evenly spread."""
        scores = token_outcomes(model, self, rows, tokenizer, batch_size)
        places = self.generated(rows)
        encoder_decoder = bool(model.config.is_encoder_decoder)
        prompts = [
            prompt_tokens(self.asked(rows.examples[place]), self.manner, tokenizer, encoder_decoder=encoder_decoder)[0]
            for place in places
        ]
        return _written(scores, places, write_texts(model, tokenizer, prompts, self.settings, batch_size))

    def through(self, backbone: Backbone, name: str, rows: Encoded) -> list[Written]:
        """The scores from the token ids, and the texts that the loader makes of the rows themselves."""
        with backbone.using(name) as model:
            scores = token_outcomes(model, self, rows, backbone.tokenizer, 1)
        places = self.generated(rows)
        asked = [apart(self.asked(rows.examples[place])) for place in places]
        texts = [
            backbone.generate(one.prompt, name, tools=one.tools or None, chat_template_kwargs=one.kwargs)
            for one in asked
        ]
        return _written(scores, places, texts)

    def generated(self, rows: Encoded) -> list[int]:
        """The places of the rows that texts are generated for."""
        most, total = self.recipe.generation.rows or 1, len(rows.features)
        if total > max(most, self.gate_rows):
            self.note(
                f"texts were generated for {most} of {total} held-out rows, evenly spread (generation.rows); "
                "the loss is that of all"
            )
        return spread(total, most)

    def metrics(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Metrics:
        """Those of the generated texts, and of the targets' tokens."""
        pairs = [(row.text.strip(), gold) for row, gold in zip(outcomes, golds, strict=True) if row.text is not None]
        found, wanted = [text for text, _ in pairs], [gold for _, gold in pairs]
        return {**self.text_metrics(found, wanted), **token_metrics([row.score for row in outcomes])}

    def gated(self, metrics: Metrics, dtype: str) -> Metrics:
        """In half precision one near tie changes all of a text that follows it, so only the tokens' metrics count."""
        return metrics if dtype == "float32" else {name: metrics[name] for name in token_metrics([])}

    def answer(self, example: Example, gold: Any, outcome: Any) -> Answer:
        """What was asked, its gold and what was written instead, or how many tokens would have come first."""
        score, text = outcome.score, outcome.text
        given = self.asked(example)
        given = apart(given).prompt
        shown = given if isinstance(given, str) else "\n".join(map(as_told, given))
        found = score.told if text is None else text.strip()
        right = score.correct == score.tokens if text is None else found == gold.strip()
        return Answer(shown, gold, found, right)


def _written(scores: Sequence[TokenScore], places: Sequence[int], texts: Sequence[str]) -> list[Written]:
    made = dict(zip(places, texts, strict=True))
    return [Written(score, made.get(place)) for place, score in enumerate(scores)]
