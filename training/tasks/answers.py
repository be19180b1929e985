"""Text generation whose completions are compared with what the model writes itself (``generation.rows``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorary.adapters.text.generate import Manner, PromptRow, generation_settings
from lorary.hub.manifest import Generation
from lorary.training.data import Example, Note
from lorary.training.tasks.base import Metrics
from lorary.training.tasks.metrics.texts import exact_match, rouge
from lorary.training.tasks.metrics.tokens import token_metrics
from lorary.training.tasks.rows.coding import Coded
from lorary.training.tasks.rows.conversation import asked, messages_of
from lorary.training.tasks.text_generation import TextGeneration
from lorary.training.tasks.writing import WritesTexts


class WrittenAnswers(WritesTexts, TextGeneration):
    """Instruction rows, measured by exact match and ROUGE beside the loss."""

    def meet(self, model: Any, tokenizer: Any, max_length: int, note: Note) -> int:
        """Settle how texts are generated."""
        self.note, self._length = note, max_length
        self.settings = generation_settings(Manner(generation=self.generation()), model, tokenizer)
        return super().meet(model, tokenizer, max_length, note)

    def look(self, examples: Sequence[Example], tokenizer: Any, max_length: int) -> None:
        """As text generation does. Raises as there."""
        super().look(examples, tokenizer, max_length)
        # Only the rows tell whether prompts are chats.
        self.manner = Manner(self.prompt(tokenizer), self.preprocessing(max_length), self.generation())

    def gold(self, example: Example, row: Coded) -> str:
        """The completion."""
        return str(messages_of(example.values)[-1]["content"])

    def asked(self, example: Example) -> PromptRow:
        """The prompt, with what it is about; a chat without its last turn."""
        if isinstance(example.values["prompt"], list):
            return [dict(turn) for turn in messages_of(example.values)[:-1]]
        return asked(example.values)

    def text_metrics(self, found: Sequence[str], golds: Sequence[str]) -> Metrics:
        """Exact match but for white space, and ROUGE."""
        return {"exact_match": exact_match(found, golds), **rouge(found, golds)}

    def main_score(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> float:
        """The loss, which all rows have, whether or not texts were generated for them."""
        return token_metrics([row.score for row in outcomes])[self.main_metric]

    def generation(self) -> Generation:
        """As the recipe says, which has to say how long."""
        return self.recipe.generation.settled(self.recipe.generation.max_new_tokens or 1)
