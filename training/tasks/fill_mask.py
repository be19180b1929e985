"""Fill-mask: masked language modelling on running text, with the base's own head left as it is.

With strategy ``continual`` the documents are joined and cut into blocks of ``max_length`` tokens, with special tokens
around each block and a separator between documents, as RoBERTa's full sentences (Liu et al. 2019); with ``fine-tune``
each row stands alone and is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from lorary.hub.errors import TrainingError
from lorary.training.data import Example, Note
from lorary.training.tasks.base import Answer, Metrics, Task
from lorary.training.tasks.hiding.hider import Hider
from lorary.training.tasks.hiding.masking import Epochs, HiddenRows, Masker
from lorary.training.tasks.metrics.tokens import TokenScore, score_tokens, token_metrics, unigram
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.rows.lengths import Length
from lorary.training.tasks.rows.token_cache import TokenCache


class FillMask(Task):
    """Masked language modelling (Devlin et al. 2019)."""

    name = "fill-mask"
    peft_task_type: str | None = None  # PEFT has none for it; the manifest says what it is
    main_metric = "loss"
    new_head = False
    masks = True

    def auto_class(self) -> Any:
        """``AutoModelForMaskedLM``."""
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    def hider(self, tokenizer: Any) -> Hider:
        """What hides parts of a text, as the recipe says.

        Raises:
            TrainingError: the tokenizer lacks what that needs.
        """
        return self._masker(tokenizer)

    def _masker(self, tokenizer: Any) -> Masker:
        training = self.recipe.training
        for key, value in (
            ("training.mean_span", training.mean_span),
            ("data.source_lang", self.recipe.data.source_lang),
        ):
            if value is not None:
                raise TrainingError(f"{key}: only encoder-decoders have it (T5, BART and their kin); leave it out")
        if tokenizer.mask_token_id is None:
            raise TrainingError("the base's tokenizer has no mask token; choose a masked language model as base")
        if training.whole_word_mask and not getattr(tokenizer, "is_fast", False):
            raise TrainingError("training.whole_word_mask needs a fast tokenizer (a tokenizer.json beside the base)")
        return Masker(tokenizer, training.mlm_probability or 0.15, training.whole_word_mask)

    def encode(
        self, examples: Sequence[Example], tokenizer: Any, max_length: int, note: Note, cache: TokenCache | None = None
    ) -> Encoded:
        """Documents to blocks or rows of token ids, each with the parts hidden that are always hidden in it.

        Raises:
            DataError: there isn't enough text.
            TrainingError: as :meth:`hider`.
        """
        hider = self.hider(tokenizer)
        stream = hider.tokenize(examples, tokenizer)
        if self.recipe.strategy == "continual":
            rows = hider.joined(stream, max_length)
            full = [len(rows.row(place)) for place in range(len(rows))]
        else:
            rows = hider.apart(stream, max_length)
            full = [length + hider.around.size for length in stream.lengths]
        room = hider.room(max_length)
        lengths = tuple(
            Length(tokens, min(tokens, room), hider.can_hide(rows.row(place))) for place, tokens in enumerate(full)
        )
        owners = tuple(examples[index] for index in rows.first)
        return Encoded(owners, HiddenRows(rows, hider), (None,) * len(rows), lengths)

    def collator(self, tokenizer: Any) -> Callable[[list[Feature]], dict[str, torch.Tensor]]:
        """Pads."""
        return self._masker(tokenizer).collate

    def trainer(self, model: Any, tokenizer: Any, settings: Mapping[str, Any], rows: Mapping[str, Any]) -> Any:
        """transformers' ``Trainer``, over training rows of which other parts are hidden in each epoch."""
        train = rows["train_dataset"].anew(self.recipe.training.seed)
        trainer = super().trainer(model, tokenizer, settings, {**rows, "train_dataset": train})
        trainer.add_callback(Epochs(train))
        return trainer

    def outcome(self, logits: torch.Tensor, feature: Feature) -> TokenScore:
        """Loss and hits over the row's hidden tokens."""
        return score_tokens(logits, torch.tensor(self.asked(feature), device=logits.device))

    def asked(self, feature: Feature) -> list[int]:
        """A row's labels as they are measured: ignored but for the hidden tokens."""
        labels: list[int] = feature["labels"]
        return labels

    def measured_on(self, rows: Encoded) -> Iterable[Any]:
        """The hidden tokens, each in its place."""
        return map(self.asked, rows.features)

    def metrics(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Metrics:
        """Of the hidden tokens: mean loss (nats), its exponential (pseudo-perplexity), and the share of top-1 hits."""
        return token_metrics(outcomes)

    def answer(self, example: Example, gold: Any, outcome: Any) -> Answer:
        """The document that the row begins in; how many hidden tokens would have come first."""
        return Answer(example.values["text"], "", outcome.told, outcome.correct == outcome.tokens)

    def baselines(self, data: Sequence[Example], train: Encoded, test: Encoded, tokenizer: Any) -> dict[str, Metrics]:
        """``unigram``: what the frequencies of the training rows' tokens alone give."""
        assert isinstance(train.features, HiddenRows)
        hider = self.hider(tokenizer)
        asked = ({"labels": self.asked(feature)} for feature in test.features)
        counted = hider.counted(train.features.rows)
        return {"unigram": unigram(counted, asked, len(tokenizer), without=sorted(hider.untold))}
