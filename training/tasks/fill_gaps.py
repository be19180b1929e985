"""Fill-mask on an encoder-decoder: it goes on with its own pretraining, which is to write the spans it wasn't shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from lorary.adapters import Backbone
from lorary.adapters.text.languages import has_languages, language_id, speaking
from lorary.hub.base_files import resolve_base
from lorary.hub.errors import TrainingError, UsageError
from lorary.hub.manifest import Filling, Preprocessing
from lorary.training.data import Note
from lorary.training.fitting.evaluate import outcomes as token_outcomes
from lorary.training.recipe import Recipe
from lorary.training.recipe.corpus import MEAN_SPAN
from lorary.training.tasks.fill_mask import FillMask
from lorary.training.tasks.forms import EncoderDecoder, demand_decoder
from lorary.training.tasks.hiding.spans import SpanCorruption, SpanHider, measured_labels, span_collator, span_hider
from lorary.training.tasks.metrics.tokens import TokenScore
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.rows.token_rows import frame_of


class FillGaps(FillMask):
    """Span corruption (T5) or text infilling (BART), whichever the base's tokenizer has the tokens for.

    The loss is taken on all that the decoder writes. So are the metrics of span corruption; those of text infilling are
    of the hidden tokens alone, since the decoder is given the others.
    """

    peft_task_type = "SEQ_2_SEQ_LM"
    masks = False  # the head that it has it can't do without

    form: EncoderDecoder
    language: str | None

    def auto_class(self) -> Any:
        """``AutoModelForSeq2SeqLM``."""
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM

    def meet(self, model: Any, tokenizer: Any, max_length: int, note: Note) -> int:
        """Refuse a base that can't learn this, and settle the language of one that marks texts with theirs.

        Raises:
            TrainingError: as :meth:`hider`, or a setting that the base has no use for.
        """
        demand_decoder(model.config, model.get_input_embeddings().weight.dtype)
        if self.recipe.training.whole_word_mask:
            raise TrainingError("training.whole_word_mask: an encoder-decoder hides spans of tokens; leave it out")
        self.form = EncoderDecoder(model)
        self.language = self._language(tokenizer, model.config.model_type)
        self.hider(tokenizer).room(max_length)
        return max_length

    def _language(self, tokenizer: Any, model_type: str) -> str | None:
        given = self.recipe.data.source_lang
        if not has_languages(tokenizer):
            if given is not None:
                raise TrainingError(
                    f"data.source_lang: the tokenizer of {model_type!r} marks no languages; leave it out"
                )
            return None
        if given is None:
            raise TrainingError(
                "the base's tokenizer marks each text with its language; name it with data.source_lang, in a code such "
                f"as {tokenizer.src_lang!r}"
            )
        try:
            language_id(tokenizer, given)
        except UsageError as error:
            raise TrainingError(f"data.source_lang: {error}") from error
        return given

    def hider(self, tokenizer: Any) -> SpanHider:
        """What hides spans. Raises as :func:`span_hider`."""
        training = self.recipe.training
        with speaking(tokenizer, self.language, self.language):
            frame = frame_of(tokenizer)
        return span_hider(tokenizer, training.mlm_probability, training.mean_span, frame)

    def collator(self, tokenizer: Any) -> Callable[[list[Feature]], dict[str, torch.Tensor]]:
        """Pads; the model makes the decoder's inputs of the labels."""
        return span_collator(self.form, tokenizer)

    def widths(self, feature: Feature) -> tuple[int, ...]:
        """The encoder's and the decoder's."""
        return self.form.widths(feature)

    def asked(self, feature: Feature) -> list[int]:
        """What is written behind sentinels, or what is hidden of the text."""
        return measured_labels(feature)

    def through(self, backbone: Backbone, name: str, rows: Encoded) -> list[TokenScore]:
        """The scores that the loader's model gives, one row at a time."""
        with backbone.using(name) as model:
            return token_outcomes(model, self, rows, backbone.tokenizer, 1)

    def golden(self, model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """With the few tokens that the loader gives a decoder to begin with."""
        return self.form.golden(model, rows)

    def preprocessing(self, max_length: int) -> Preprocessing:
        """Also the language, where the base marks it."""
        return replace(super().preprocessing(max_length), source_lang=self.language, target_lang=self.language)

    def filling(self, tokenizer: Any) -> Filling:
        """What stands in a gap, and as many tokens as hardly a span had: of a thousand, one or two are longer."""
        mean = self.recipe.training.mean_span or MEAN_SPAN
        gaps = "sentinels" if isinstance(self.hider(tokenizer), SpanCorruption) else "mask"
        return Filling(gaps, math.ceil(5 * mean) + 1)


def writes_what_it_reads(recipe: Recipe) -> bool:
    """Is a recipe's base an encoder-decoder? One that can't be read isn't; what is wrong is said where it is loaded."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(resolve_base(recipe.base, revision=recipe.revision, weights=False).path)
    except (OSError, ValueError):
        return False
    return bool(getattr(config, "is_encoder_decoder", False))
