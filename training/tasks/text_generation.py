"""Text generation: instruction rows (prompt, completion), chats (messages) and plain text, through a causal model.

Rows are turned into token ids here, with the trained positions marked, so that what is trained is what will be asked:
the prompt's ids are exactly those that ``generate`` will make, and beginning-of-text stands once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch

from lorary.adapters.running.inference import longest_input
from lorary.adapters.text.generate import open_tokens
from lorary.hub.errors import DataError, TrainingError
from lorary.hub.manifest import Prompt
from lorary.training.data import Example, Note
from lorary.training.fitting.losses import IGNORED
from lorary.training.recipe import Recipe
from lorary.training.tasks.base import Answer, Metrics, Task
from lorary.training.tasks.forms import Causal
from lorary.training.tasks.metrics.tokens import TokenScore, token_metrics
from lorary.training.tasks.rows.coding import Coded
from lorary.training.tasks.rows.conversation import (
    UNTOLD,
    UNWRITTEN,
    Chat,
    alone,
    as_told,
    asked,
    asked_of,
    check_chats,
    check_told,
    encode_chat,
    messages_of,
    told_of,
)
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.rows.lengths import Length
from lorary.training.tasks.rows.packing import PackingCollator, first_fit, keeps_rows_apart

PART = "part"
"""Marks a row that stands for one turn of another row."""

DEFAULT_TEMPLATE = "### Instruction:\n{prompt}\n\n### Response:\n"


class TextGeneration(Task):
    """Causal language modelling; the loss is taken on completions, on the assistant's turns, or on all of a text."""

    name = "text-generation"
    peft_task_type = "CAUSAL_LM"
    main_metric = "loss"
    new_head = False

    def __init__(self, recipe: Recipe, labels: tuple[str, ...] | None) -> None:
        super().__init__(recipe, labels)
        self._packed: PackingCollator | None = None
        self._chats = False

    @property
    def format(self) -> str:
        """``instruction``, ``chat`` or ``plain``: as the recipe says, else as columns and rows suggest."""
        columns = self.recipe.data.columns
        bare = columns.text or not (columns.prompt or columns.messages)
        told = columns.messages or columns.tools or columns.chat_template_kwargs
        suggested = "chat" if told or self._chats else "plain" if bare else "instruction"
        return self.recipe.prompt.format or suggested

    def auto_class(self) -> Any:
        """``AutoModelForCausalLM``."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def prompt(self, tokenizer: Any) -> Prompt:
        """The format, and the templates that aren't the base's own."""
        template = (self.recipe.prompt.template or DEFAULT_TEMPLATE) if self.format == "instruction" else None
        own = self.recipe.prompt
        return Prompt(self.format, template, own.chat_template, own.chat_template_kwargs or None)

    def look(self, examples: Sequence[Example], tokenizer: Any, max_length: int) -> None:
        """What the rows' format needs.

        Raises:
            TrainingError: the tokenizer lacks it (an end-of-text token, a chat template).
            DataError: rows are messages, and the recipe's format isn't chat; or they tell the template what it doesn't
                know.
        """
        self._see(examples)
        self._check(tokenizer)
        if column := self.recipe.data.columns.chat_template_kwargs:
            check_told(examples, tokenizer, self.recipe.prompt, column)

    def coding(self, tokenizer: Any, max_length: int) -> dict[str, Any]:
        """Also the format, which all of the rows decide."""
        return {**super().coding(tokenizer, max_length), "format": self.format}

    def code(self, example: Example, tokenizer: Any, max_length: int) -> Coded:
        """A row's token ids, with labels on what is learned. Raises DataError where the chat template refuses it."""
        chat = self._encode_one(example.values, tokenizer, example.place)
        whole, learned = chat.ids, chat.labels
        # The first position is never predicted, so a label there teaches nothing.
        ids, labels = whole[:max_length], [IGNORED, *learned[1:max_length]]
        length = Length(len(whole), len(ids), any(label != IGNORED for label in labels))
        feature = {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)}
        return Coded((feature,), length, (chat.lost, *chat.left))

    def unfold(
        self, examples: Sequence[Example], rows: Sequence[Coded], code: Callable[[Sequence[Example]], list[Coded]]
    ) -> tuple[Sequence[Example], Sequence[Coded]]:
        """Turns that the template writes otherwise once the chat goes on are learned where it ends with them."""
        parts = [
            Example({**example.values, "messages": alone(example.values["messages"], turn), PART: True}, example.place)
            for example, row in zip(examples, rows, strict=True)
            for turn in _unlearned(example, row)
        ]
        if not parts:
            return examples, rows
        coded = zip(parts, code(parts), strict=True)
        found: list[tuple[Example, Coded]] = []
        for example, row in zip(examples, rows, strict=True):
            turns = _unlearned(example, row)
            own = list(islice(coded, len(turns)))
            # Of those that no generation begins, the row itself tells.
            left = tuple(turn for turn, (_, part) in zip(turns, own, strict=True) if part.known[1:])
            found.append((example, replace(row, known=(*row.known[:1], *left)) if turns else row))
            found += [(part, row) for part, row in own if not row.known[1:]]
        return [example for example, _ in found], [row for _, row in found]

    def remark(self, encoded: Encoded, rows: Sequence[Coded], tokenizer: Any, note: Note) -> None:
        """A chat template may leave out turns or reasoning, or what a generation could stop at."""
        coded = list(zip(encoded.examples, rows, strict=True))
        left = [(example.place, len(row.known) - 1) for example, row in coded if row.known[1:]]
        if left:
            turns, (first, _) = sum(count for _, count in left), left[0]
            note(
                f"{turns} turns of the assistant, in {len(left)} of {len(rows)} rows, aren't learned (first: {first}): "
                "the chat template doesn't write them as it begins a generation; tell it otherwise with "
                "prompt.chat_template_kwargs (enable_thinking: false, say), or give another prompt.chat_template"
            )
        if parts := [example.place for example in encoded.examples if example.values.get(PART)]:
            note(
                f"{len(parts)} of the assistant's turns are learned in rows of their own (first: {parts[0]}): the chat "
                "template writes them otherwise once the chat goes on (without their reasoning, say)"
            )
        lost = {
            kind: [example.place for example, row in coded if row.known and row.known[0] & kind]
            for kind in (UNWRITTEN, UNTOLD)
        }
        if lost[UNWRITTEN]:
            note(
                f"{len(lost[UNWRITTEN])} of {len(rows)} chats have reasoning or tool calls that the chat template "
                f"doesn't write, so they aren't learned (first: {lost[UNWRITTEN][0]}); put them into the content, or "
                "give another prompt.chat_template"
            )
        if lost[UNTOLD]:
            note(
                f"{len(lost[UNTOLD])} of {len(rows)} chats have tools that the chat template doesn't write, so the "
                f"model isn't told of them (first: {lost[UNTOLD][0]}); put them into a system message, or give another "
                "prompt.chat_template"
            )
        stops = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        if self.format == "chat" and not any(stops.intersection(feature["labels"]) for feature in encoded.features):
            note("the chat template ends the assistant's turns with no special token: a generation won't know its end")

    def trainer(self, model: Any, tokenizer: Any, settings: Mapping[str, Any], rows: Mapping[str, Any]) -> Any:
        """TRL's ``SFTTrainer``; rows share sequences where the model keeps them apart (``training.packing``).

        Raises:
            TrainingError: packing is asked for, and the model lets packed rows see each other.
        """
        from lorary.training.fitting.generation import generation_trainer, pack_rows

        padding = self.collator(tokenizer)
        packing = self._packing(model, rows["train_dataset"])
        if packing is True:
            longest = longest_input(model.get_base_model()) or self.recipe.training.max_length
            packed = pack_rows(rows["train_dataset"], min(longest, self.recipe.training.max_length))
            self.notices.append(
                f"{len(rows['train_dataset'])} rows are packed into {len(packed)} sequences; a step of "
                f"training.batch_size {self.recipe.training.batch_size} sees that many sequences"
            )
            rows = {**rows, "train_dataset": packed}
        if packing:
            flat = "flash" in str(model.get_base_model().config._attn_implementation)
            self._packed = PackingCollator(tokenizer.pad_token_id, flat)
        return generation_trainer(
            model, tokenizer, settings, rows, collator=self._packed or padding, validation_collator=padding
        )

    def batched(self, features: Sequence[Feature]) -> Sequence[Feature]:
        """Where ``training.packing`` is true, sequences of up to ``max_length`` tokens."""
        if self.recipe.training.packing is not True:
            return features
        bins = first_fit([len(feature["input_ids"]) for feature in features], self.recipe.training.max_length)
        return [
            {name: list(chain(*(features[place][name] for place in places))) for name in features[0]} for places in bins
        ]

    def _packing(self, model: Any, rows: Any) -> bool | str:
        """How the training rows are packed: as the recipe says, and by default where the model allows it."""
        asked = self.recipe.training.packing
        if asked is False:
            return False
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            if asked is not None:
                raise TrainingError("training.packing: virtual tokens stand before a row alone; set it to false")
            return False
        if keeps_rows_apart(model, [rows[0]["input_ids"], rows[len(rows) - 1]["input_ids"]]):
            return "batch" if asked is None else asked
        architecture = type(model.get_base_model()).__name__
        if asked is not None:
            raise TrainingError(
                f"training.packing: in one sequence, {architecture} lets rows see each other; set it to false"
            )
        self.notices.append(f"rows are padded, not packed: in one sequence, {architecture} lets them see each other")
        return False

    def figures(self) -> dict[str, Any]:
        """What packing saved."""
        return {"packing": self._packed.figures()} if self._packed else {}

    def _check(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise TrainingError("the base's tokenizer has no end-of-text token, so a generation would never stop")
        if self.format == "chat":
            check_chats(tokenizer, self.recipe.prompt)

    def _see(self, examples: Sequence[Example]) -> None:
        """Rows whose prompts or replies are messages are chats, whatever their columns are called.

        Raises:
            DataError: the recipe asks for another format.
        """
        roles = ("messages", "prompt", "completion", "chosen")
        chats = [row for row in examples if any(isinstance(row.values.get(role), list) for role in roles)]
        self._chats |= bool(chats)
        if chats and self.format != "chat":
            raise DataError(
                "rows",
                [f"{chats[0].place}: messages, but prompt.format is {self.format!r}; set it to chat, or leave it out"],
            )

    def _encode_one(self, values: Mapping[str, Any], tokenizer: Any, place: str) -> Chat:
        learn = self.recipe.prompt.learn or "replies"
        if self.format == "chat":
            tools, kwargs = told_of(values, self.recipe.prompt)
            return encode_chat(
                messages_of(values), tokenizer, self.recipe.prompt, learn=learn, place=place,
                asked=asked_of(values), tools=tools, kwargs=kwargs,
            )  # fmt: skip
        if "text" in values:
            ids = [*open_tokens(values["text"], tokenizer), tokenizer.eos_token_id]
            return Chat(ids, list(ids))
        template = self.recipe.prompt.template or DEFAULT_TEMPLATE
        text = asked(values)
        prompt = open_tokens(text if self.format == "plain" else template.replace("{prompt}", text), tokenizer)
        completion = tokenizer(values["completion"], add_special_tokens=False, verbose=False)["input_ids"]
        reply = [*completion, tokenizer.eos_token_id]
        return Chat(prompt + reply, (list(prompt) if learn == "all" else [IGNORED] * len(prompt)) + reply)

    def collator(self, tokenizer: Any) -> Callable[[list[Feature]], dict[str, torch.Tensor]]:
        """Pads."""
        return Causal().collator(tokenizer)

    def outcome(self, logits: torch.Tensor, feature: Feature) -> TokenScore:
        """Loss and hits over the row's trained tokens; position i predicts token i + 1."""
        return Causal().score(logits, feature)

    def answer(self, example: Example, gold: Any, outcome: Any) -> Answer:
        """The prompt and what was to follow; of the answer, how many tokens would have come first."""
        plain = example.values.get("text")
        turns = [as_told(message) for message in messages_of(example.values)] if plain is None else [plain, ""]
        return Answer("\n".join(turns[:-1]), turns[-1], outcome.told, outcome.correct == outcome.tokens)

    def measured_on(self, rows: Encoded) -> Iterable[Any]:
        """The tokens that are predicted: a mean over those of another tokenizer is another loss."""
        return ([label for label in feature["labels"] if label != IGNORED] for feature in rows.features)

    def losses(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Sequence[float]:
        """The mean over each row's trained tokens."""
        return [float(outcome.loss / max(1, outcome.tokens)) for outcome in outcomes]

    def metrics(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Metrics:
        """Mean loss per trained token (nats), its exponential (perplexity), and the share of tokens that were top-1."""
        return token_metrics(outcomes)


def _unlearned(example: Example, row: Coded) -> tuple[int, ...]:
    """Which messages of a chat were to be learned, and aren't."""
    return row.known[1:] if "messages" in example.values else ()
