"""What summarization and translation share: one text becomes another, and is measured by generating it.

Both take encoder-decoders (T5, BART, mBART, NLLB) and causal language models; these get the text in a prompt. Texts
become token ids by the loader's own functions, so what is trained is what ``predict`` will ask.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from lorary.adapters.base.loading import natural_class
from lorary.adapters.running.inference import longest_input
from lorary.adapters.text.generate import Manner, generation_settings, prompt_tokens
from lorary.adapters.text.languages import has_languages, language_id, speaking
from lorary.hub.base_files import resolve_base
from lorary.hub.errors import BaseNotFoundError, TrainingError, UsageError, first_line
from lorary.hub.manifest import Generation, Preprocessing, Prompt
from lorary.training.data import Example, Note
from lorary.training.tasks.base import Metrics
from lorary.training.tasks.forms import T5_KIN, Causal, EncoderDecoder, Form, demand_decoder
from lorary.training.tasks.metrics.tokens import TokenScore
from lorary.training.tasks.rows.coding import Coded
from lorary.training.tasks.rows.conversation import check_template
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.rows.lengths import Length, Room
from lorary.training.tasks.writing import WritesTexts

_FEWEST_SOURCE_TOKENS = 16


class Rewriting(WritesTexts):
    """One text becomes another. The loss is taken on the target's tokens; ROUGE or BLEU on generated texts."""

    new_head = False
    source_role: ClassVar[str]
    target_role: ClassVar[str]

    form: Form
    target_length: int

    @abstractmethod
    def t5_prefix(self) -> str | None:
        """What T5 was pretrained to see before such a text, None where the recipe doesn't say enough to know."""

    @abstractmethod
    def instruction(self) -> str:
        """What a causal model is told to do, as a sentence."""

    @abstractmethod
    def baseline(self, source: str) -> tuple[str, str]:
        """The name of an answer that needs no model, and that answer."""

    def auto_class(self) -> Any:
        """The class under which the base is served, which has a language-modelling head in either case."""
        from transformers import AutoConfig

        path = resolve_base(self.recipe.base, revision=self.recipe.revision, weights=False).path
        try:
            return natural_class(AutoConfig.from_pretrained(path))
        except (OSError, ValueError) as error:
            raise BaseNotFoundError(
                f"base {self.recipe.base!r} can't be loaded as a model: {first_line(error)}"
            ) from error

    # The base

    def meet(self, model: Any, tokenizer: Any, max_length: int, note: Note) -> int:
        """Settle prefix, template, languages and lengths for this base.

        Raises:
            TrainingError: the base can't learn this, or has no use for one of the settings.
        """
        self.note = note
        if tokenizer.eos_token_id is None:
            raise TrainingError("the base's tokenizer has no end-of-text token, so a generation would never stop")
        config = model.config
        self.form = EncoderDecoder(model) if config.is_encoder_decoder else Causal()
        self.peft_task_type = self.form.peft_task_type
        if self.form.encoder_decoder:
            self._refuse_broken_decoders(config, model.get_input_embeddings().weight.dtype)
        max_length = self._settle_lengths(model, max_length, note)
        languages = self._languages(tokenizer, config.model_type)
        self.manner = Manner(
            self._put(tokenizer),
            replace(
                Preprocessing(self.recipe.data.columns.named(), max_length, self._prefix(config, note)),
                source_lang=languages[0],
                target_lang=languages[1],
            ),
            self.generation(),
            cuts=True,
        )
        self.settings = generation_settings(self.manner, model, tokenizer)
        return max_length

    def _refuse_broken_decoders(self, config: Any, dtype: torch.dtype) -> None:
        prompt = self.recipe.prompt
        for key in ("format", "template", "chat_template", "chat_template_kwargs"):
            if getattr(prompt, key) is not None:
                raise TrainingError(
                    f"prompt.{key}: {config.model_type!r} is an encoder-decoder, which takes a prefix only; "
                    "use prompt.prefix, or a causal base"
                )
        demand_decoder(config, dtype)

    def _settle_lengths(self, model: Any, max_length: int, note: Note) -> int:
        """Room for text and target, within what the base takes."""
        from lorary.training.model import virtual_tokens  # which needs the tasks

        wanted = self.recipe.training.max_target_length or 128
        longest = longest_input(model)
        self.target_length = wanted
        if longest is None:
            return max_length
        longest -= virtual_tokens(self.recipe)  # a decoder has them before its target too
        if self.form.encoder_decoder:
            self.target_length = min(wanted, longest)
            if self.target_length < wanted:
                note(f"the base writes at most {longest} tokens, training.max_target_length asks for {wanted}")
            return max_length
        room = longest - wanted
        if room < _FEWEST_SOURCE_TOKENS:
            raise TrainingError(
                f"training.max_target_length {wanted} leaves {max(0, room)} of the base's {longest} tokens for the "
                f"text; expected at least {_FEWEST_SOURCE_TOKENS}: lower it"
            )
        if room < max_length:
            note(f"the base takes {longest} tokens, {wanted} of which are the target's: texts are cut to {room}")
        return min(max_length, room)

    def _languages(self, tokenizer: Any, model_type: str) -> tuple[str | None, str | None]:
        """The codes that the tokenizer marks texts with; None where it has none."""
        data = self.recipe.data
        if self.form.encoder_decoder and has_languages(tokenizer):
            if data.source_lang is None or data.target_lang is None:
                raise TrainingError(
                    "the base's tokenizer marks each text with its language; name both with data.source_lang and "
                    f"data.target_lang, in codes such as {tokenizer.src_lang!r}"
                )
            for key, code in (("source_lang", data.source_lang), ("target_lang", data.target_lang)):
                try:
                    language_id(tokenizer, code)
                except UsageError as error:
                    raise TrainingError(f"data.{key}: {error}") from error
            return data.source_lang, data.target_lang
        if data.source_lang is not None and self.form.encoder_decoder and model_type not in T5_KIN:
            raise TrainingError(
                f"data.source_lang: the tokenizer of {model_type!r} marks no languages, and no prompt names them; "
                "leave the languages out"
            )
        return None, None

    def _prefix(self, config: Any, note: Note) -> str:
        given = self.recipe.prompt.prefix
        if given is not None:
            return given
        if not self.form.encoder_decoder:
            return f"{self.instruction()}\n\n" if self.recipe.prompt.format == "chat" else ""
        if config.model_type in T5_KIN:
            prefix = self.t5_prefix()
            if prefix is None:
                note(
                    "texts stand before the base without a prefix; T5 was pretrained with such as 'translate English "
                    "to German: ': set data.source_lang and data.target_lang, or prompt.prefix"
                )
            return prefix or ""
        return ""

    def _put(self, tokenizer: Any) -> Prompt:
        prompt = self.recipe.prompt
        form = prompt.format or "instruction"
        if self.form.encoder_decoder or form == "plain":
            return Prompt()
        if form == "chat":
            check_template(tokenizer, prompt)
            return Prompt("chat", None, prompt.chat_template, prompt.chat_template_kwargs or None)
        name = self.target_role.capitalize() if self.target_role != "target" else "Translation"
        default = f"{self.instruction()}\n\n### Text:\n{{prompt}}\n\n### {name}:\n"
        return Prompt("instruction", prompt.template or default)

    # Rows

    def coding(self, tokenizer: Any, max_length: int) -> dict[str, Any]:
        """Also what was settled for the base, but for how texts are generated."""
        manner = repr(replace(self.manner, generation=None))
        met = {"manner": manner, "target_length": self.target_length, "form": type(self.form).__name__}
        return {**super().coding(tokenizer, max_length), **met}

    def code(self, example: Example, tokenizer: Any, max_length: int) -> Coded:
        """Text and target to token ids, each cut to its own length; known is by how much the target was.

        Raises:
            TrainingError: the prompt's template leaves no room for a text.
        """
        try:
            source, source_full = prompt_tokens(
                self.asked(example), self.manner, tokenizer, encoder_decoder=self.form.encoder_decoder
            )
        except UsageError as error:
            text = str(error).replace("shorten it", "shorten prompt.template, or raise training.max_length")
            raise TrainingError(text) from error
        target, target_full = self._target(example.values[self.target_role], tokenizer)
        length = Length(source_full + target_full, len(source) + len(target), bool(target))
        return Coded((self.form.feature(source, target),), length, (target_full - len(target),))

    def gold(self, example: Example, row: Coded) -> Any:
        """The target's text."""
        return example.values[self.target_role]

    def remark(self, encoded: Encoded, rows: Sequence[Coded], tokenizer: Any, note: Note) -> None:
        """Targets that were cut."""
        cut = sum(row.known[0] > 0 for row in rows)
        if cut:
            note(
                f"{cut} of {len(rows)} targets are longer than {self.target_length} tokens and were cut "
                "(training.max_target_length)"
            )

    def room(self, max_length: int) -> Room:
        """Texts and targets have lengths of their own."""
        most = f"{max_length} tokens of text or {self.target_length} of target"
        return Room(most, "training.max_length or training.max_target_length")

    def _target(self, text: str, tokenizer: Any) -> tuple[list[int], int]:
        """A target's ids, which end with end-of-text however long it is, and how many there would be."""
        preprocessing = self.manner.preprocessing
        eos, limit = tokenizer.eos_token_id, self.target_length
        if not self.form.encoder_decoder:
            ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            return [*ids[: limit - 1], eos], len(ids) + 1
        with speaking(tokenizer, preprocessing.source_lang, preprocessing.target_lang):
            ids = list(tokenizer(text_target=text, verbose=False)["input_ids"])
            full = len(ids)
            if full > limit:
                ids = list(tokenizer(text_target=text, truncation=True, max_length=limit)["input_ids"])
        # mBART's end with the language behind the end of text; some tokenizers put no end at all.
        return (ids, full) if eos in ids[-2:] else ([*ids[: limit - 1], eos], full + 1)

    def collator(self, tokenizer: Any) -> Callable[[list[Feature]], dict[str, torch.Tensor]]:
        """The form's."""
        return self.form.collator(tokenizer)

    def widths(self, feature: Feature) -> tuple[int, ...]:
        """The form's."""
        return self.form.widths(feature)

    # Measuring

    def outcome(self, logits: torch.Tensor, feature: Feature) -> TokenScore:
        """How well the target's tokens are predicted."""
        return self.form.score(logits, feature)

    def asked(self, example: Example) -> str:
        """The text."""
        return str(example.values[self.source_role])

    def is_scored(self, outcome: Any) -> bool:
        """Was a text generated for it?"""
        return outcome.text is not None

    def baselines(self, data: Sequence[Example], train: Encoded, test: Encoded, tokenizer: Any) -> dict[str, Metrics]:
        """An answer without a model, on the rows that texts are generated for."""
        rows = [test.examples[place].values for place in self.generated(test)]
        found = [self.baseline(row[self.source_role]) for row in rows]
        golds = [row[self.target_role] for row in rows]
        return {found[0][0]: self.text_metrics([text for _, text in found], golds)}

    def golden(self, model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
        """The form's."""
        return self.form.golden(model, rows)

    # The manifest

    def preprocessing(self, max_length: int) -> Preprocessing:
        """Columns, length, prefix and languages."""
        return self.manner.preprocessing

    def prompt(self, tokenizer: Any) -> Prompt | None:
        """A causal model's; an encoder-decoder has its prefix."""
        return None if self.form.encoder_decoder else self.manner.prompt

    def generation(self) -> Generation:
        """As the recipe says; as long as the targets unless it says how long."""
        return self.recipe.generation.settled(self.target_length)
