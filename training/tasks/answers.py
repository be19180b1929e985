"""Text generation whose completions are compared with what the model writes itself (``generation.rows``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorary.adapters.text.asked import ask
from lorary.adapters.text.generate import Manner, PromptRow, generation_settings
from lorary.adapters.text.templates import chat_text
from lorary.hub.manifest import Generation
from lorary.training.data import Example, Note
from lorary.training.tasks.base import Metrics
from lorary.training.tasks.metrics.texts import exact_match, rouge
from lorary.training.tasks.metrics.tokens import token_metrics
from lorary.training.tasks.rows.coding import Coded
from lorary.training.tasks.rows.conversation import asked, messages_of, told_of
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
        self._tokenizer = tokenizer
        # Only the rows tell whether prompts are chats.
        self.manner = Manner(self.prompt(tokenizer), self.preprocessing(max_length), self.generation())

    def gold(self, example: Example, row: Coded) -> str:
        """The completion; of tool calls, what a generation would have to be to be read as the template writes them."""
        *before, reply = messages_of(example.values)
        if not reply.get("tool_calls"):
            return str(reply["content"])
        told = told_of(example.values, self.recipe.prompt)
        template = self.recipe.prompt.chat_template
        prompt = chat_text(self._tokenizer, before, template, *told, add_generation_prompt=True)
        whole = chat_text(self._tokenizer, [*before, reply], template, *told, add_generation_prompt=False)
        ids = self._tokenizer(whole.removeprefix(prompt), add_special_tokens=False)["input_ids"]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def asked(self, example: Example) -> PromptRow:
        """The prompt, with what it is about; a chat without its last turn."""
        values = example.values
        chat = isinstance(values["prompt"], list)
        prompt: PromptRow = [dict(turn) for turn in messages_of(values)[:-1]] if chat else asked(values)
        put: PromptRow = ask(prompt, values.get("tools"), values.get("chat_template_kwargs"))
        return put

    def text_metrics(self, found: Sequence[str], golds: Sequence[str]) -> Metrics:
        """Exact match but for white space, and ROUGE."""
        return {"exact_match": exact_match(found, golds), **rouge(found, golds)}

    def main_score(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> float:
        """The loss, which all rows have, whether or not texts were generated for them."""
        return token_metrics([row.score for row in outcomes])[self.main_metric]

    def losses(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Sequence[float]:
        """Those of the completions, whatever was written in their place."""
        return super().losses([row.score for row in outcomes], golds)

    def generation(self) -> Generation:
        """As the recipe says, which has to say how long."""
        return self.recipe.generation.settled(self.recipe.generation.max_new_tokens or 1)
