"""Feature extraction: embeddings that put like texts together, learned from pairs, triples or scored pairs.

What is trained is what ``predict`` gives: the same pooling, the same padding. Training compares embeddings by their
cosine, whether or not ``predict`` brings them to length 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from lorary.adapters import Backbone
from lorary.adapters.base.loading import is_encoder
from lorary.adapters.predict.feature_extraction import pool
from lorary.adapters.running.forward import logits_of
from lorary.hub.errors import DataError, GateError, TrainingError
from lorary.hub.manifest import Pooling
from lorary.training.data import Example
from lorary.training.fitting.evaluate import logits_by_row
from lorary.training.recipe import Recipe
from lorary.training.recipe.raw import shown
from lorary.training.tasks.base import Answer, Metrics, Task
from lorary.training.tasks.heads import embeddings
from lorary.training.tasks.rows.coding import Coded
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.rows.lengths import Length
from lorary.training.tasks.rows.padding import pad_right


def _nothing(example: Example, role: str) -> DataError:
    text = shown(example.values[role])
    said = f"{text} comes to no token of the base's tokenizer, so it has no embedding; leave the row out"
    return DataError("rows", [f"{example.place}, {role}: {said}"])


_CLOSE = 1e-3  # the least cosine distance that says that an embedding is another one


class FeatureExtraction(Task):
    """Contrastive learning on the body alone; rows are told apart by their columns.

    ``text`` and ``positive``: each text has its own positive among those of its batch to find (InfoNCE, van den Oord et
    al. 2018; in-batch negatives, Henderson et al. 2017). ``negative`` adds one harder text a row to the others.
    ``text``, ``text_pair`` and ``score``: the more alike, the higher the cosine (CoSENT, Huang et al. 2024).
    """

    name = "feature-extraction"
    peft_task_type = "FEATURE_EXTRACTION"
    new_head = False
    bare = True
    batch_counts = True

    def __init__(self, recipe: Recipe, labels: tuple[str, ...] | None) -> None:
        super().__init__(recipe, labels)
        roles = recipe.data.columns.named()
        self.scored = "score" in roles
        self.main_metric = "spearman" if self.scored else "mrr@10"
        self.least_batch = 1 if "negative" in roles else 2
        self._texts = [role for role in ("text", "positive", "negative", "text_pair") if role in roles]
        self._mode = recipe.embedding.pooling or "mean"

    def begin(self, train: Sequence[Example]) -> None:
        """Raises DataError where the rows hold nothing to be told apart."""
        if self.scored and len({float(example.values["score"]) for example in train}) < 2:
            raise DataError("rows", [f"every training row has the score {train[0].values['score']}; expected several"])
        if not self.scored and len({example.values["positive"] for example in train}) < 2:
            raise DataError("rows", ["every training row has the same positive; expected at least two to tell apart"])

    def auto_class(self) -> Any:
        """``AutoModel``."""
        from transformers import AutoModel

        return AutoModel

    def check_base(self, model: Any) -> None:
        """Pooling where the recipe doesn't say: the mean over an encoder's tokens, a causal model's last token.

        Raises:
            TrainingError: an encoder-decoder, or a causal model's first token, which sees no other.
        """
        if model.config.is_encoder_decoder:
            raise TrainingError(
                f"feature-extraction can't be trained on {type(model).__name__}: its passes run the decoder too, of "
                "which an embedding has none (an adapter that was trained on the encoder elsewhere is served); choose "
                "an encoder or a causal model"
            )
        causal = not is_encoder(model.config)
        if causal and self._mode == "cls":
            raise TrainingError(
                f"embedding.pooling cls: the first token of {type(model).__name__} sees no other, so every text would "
                "have the same embedding; choose last or mean"
            )
        if causal and self.recipe.embedding.pooling is None:
            self._mode = "last"

    def code(self, example: Example, tokenizer: Any, max_length: int) -> Coded:
        """Each of a row's texts to token ids, cut to ``max_length``; ``others`` are those after the first.

        Raises:
            DataError: a text of no tokens, which has no embedding.
        """
        texts = [example.values[role] for role in self._texts]
        made = [dict(tokenizer(text, truncation=True, max_length=max_length)) for text in texts]
        kept = [len(one["input_ids"]) for one in made]
        if min(kept) <= tokenizer.num_special_tokens_to_add():
            raise _nothing(example, self._texts[kept.index(min(kept))])
        full = [
            len(tokenizer(text, verbose=False)["input_ids"]) if count == max_length else count
            for text, count in zip(texts, kept, strict=True)
        ]
        score = {"score": float(example.values["score"])} if self.scored else {}
        return Coded(({**made[0], "others": made[1:], **score},), Length(sum(full), sum(kept)))

    def gold(self, example: Example, row: Coded) -> Any:
        """The score of a scored pair, else the texts."""
        return float(example.values["score"]) if self.scored else tuple(example.values[role] for role in self._texts)

    def collator(self, tokenizer: Any) -> Callable[[list[Feature]], dict[str, torch.Tensor]]:
        """A batch of rows, [rows, texts, tokens]; of single texts, [texts, tokens].

        ``labels`` [rows]: the scores, or the number of each row's positive. ``texts`` [rows, texts]: equal texts have
        equal numbers, by which :meth:`loss` knows what is no negative.
        """
        pad = pad_right(tokenizer)

        def collate(features: list[Feature]) -> dict[str, torch.Tensor]:
            firsts = [{key: one[key] for key in one if key not in ("others", "score")} for one in features]
            if "others" not in features[0]:
                return pad(firsts)
            texts = [one for first, row in zip(firsts, features, strict=True) for one in (first, *row["others"])]
            numbers: dict[tuple[int, ...], int] = {}
            same = [numbers.setdefault(tuple(one["input_ids"]), len(numbers)) for one in texts]
            rows = len(features)
            batch = {name: tensor.view(rows, -1, tensor.shape[1]) for name, tensor in pad(texts).items()}
            scores = torch.tensor([one["score"] for one in features]) if self.scored else torch.arange(rows)
            return {**batch, "labels": scores, "texts": torch.tensor(same).view(rows, -1)}

        return collate

    def widths(self, feature: Feature) -> tuple[int, ...]:
        """All of a row's texts are padded alike."""
        return (max(len(one["input_ids"]) for one in (feature, *feature["others"])),)

    def shortened(self, feature: Feature, length: int) -> Feature:
        """Each of its texts."""
        others = [super(FeatureExtraction, self).shortened(one, length) for one in feature["others"]]
        return {**super().shortened(feature, length), "others": others}

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Each text as a row of its own, [rows * texts, tokens]."""
        return {name: tensor.flatten(0, 1) for name, tensor in batch.items() if name not in ("labels", "texts")}

    def loss(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss of a batch, in float32."""
        labels, texts, inputs = batch["labels"], batch["texts"], self.inputs(batch)
        states = logits_of(model(**inputs)).float()
        vectors = embeddings.pool_batch(states, inputs["attention_mask"], self._mode)
        # Columns in turn: the texts that rows begin with, their positives, their negatives.
        firsts, *others = vectors.view(*texts.shape, -1).unbind(dim=1)
        temperature = self.recipe.embedding.temperature
        assert temperature is not None  # the task's facts have a default
        if self.scored:
            return embeddings.cosent(firsts, others[0], labels, temperature)
        relation = embeddings.relations(texts[:, 0], texts[:, 1:].T.flatten())
        return embeddings.ranking(firsts, torch.cat(others), relation, temperature)

    def trainer(self, model: Any, tokenizer: Any, settings: Mapping[str, Any], rows: Mapping[str, Any]) -> Any:
        """transformers' own, with the loss from here."""
        from transformers import TrainingArguments

        from lorary.training.fitting.own_device import one_device
        from lorary.training.fitting.own_loss import OwnLossTrainer

        arguments = one_device(TrainingArguments(**{**settings, "label_names": list(self.targets)}), model)
        return OwnLossTrainer(self.loss, model=model, args=arguments, data_collator=self.collator(tokenizer), **rows)

    def outcome(self, logits: torch.Tensor, feature: Feature) -> torch.Tensor:
        """A text's embedding [hidden] from its hidden states [tokens, hidden]."""
        return pool(logits.float().cpu(), self.pooling())

    def outcomes(self, model: Any, rows: Encoded, tokenizer: Any, batch_size: int) -> list[Any]:
        """The embeddings of each row's texts [texts, hidden]."""
        texts = self._one_by_one(rows)
        made = logits_by_row(model, self, texts, tokenizer, batch_size)
        found = {place: self.outcome(states, {}) for place, (states,) in made}
        vectors = torch.stack([found[place] for place in range(len(found))])
        return list(vectors.split(len(self._texts)))

    def _one_by_one(self, rows: Encoded) -> Encoded:
        """Each text as a row of its own, the way ``predict`` has them."""
        firsts = [{key: one[key] for key in one if key not in ("others", "score")} for one in rows.features]
        features = [one for first, row in zip(firsts, rows.features, strict=True) for one in (first, *row["others"])]
        examples = [example for example in rows.examples for _ in self._texts]
        return Encoded(tuple(examples), tuple(features), (None,) * len(features))

    def metrics(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Metrics:
        """Of scored pairs Spearman's and Pearson's correlation of score and cosine.

        Of the others how well each text finds its positive among all positives and negatives of these rows:
        ``accuracy@1``, ``mrr@10``, ``recall@10``; with negatives also the share of rows whose positive is nearer.
        """
        if self.scored:
            return embeddings.correlations(outcomes, golds)
        return embeddings.retrieval(outcomes, golds)

    def losses(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Sequence[float]:
        """Each row's part in the loss, had all of these rows been one batch."""
        temperature = self.recipe.embedding.temperature
        assert temperature is not None
        if self.scored:
            return embeddings.cosent_of_rows(outcomes, golds, temperature)
        return embeddings.ranking_of_rows(outcomes, golds, temperature)[0]

    def answers(self, rows: Encoded, outcomes: Sequence[Any]) -> list[Answer]:
        """A text's positive, and which of all texts is nearest to it; of a scored pair its score and its cosine."""
        if self.scored:
            cosines = [float(cosine_similarity(row[0], row[1], dim=0)) for row in outcomes]
            return [
                Answer(f"{text} | {other}", f"score {gold:g}", f"cosine {cosine:.3f}", right=True)
                for (text, other), gold, cosine in zip(self._given(rows), rows.golds, cosines, strict=True)
            ]
        nearest = embeddings.ranking_of_rows(outcomes, rows.golds, 1.0)[1]
        return [
            Answer(text, positive, found, right=found == positive)
            for (text, positive, *_), found in zip(rows.golds, nearest, strict=True)
        ]

    def _given(self, rows: Encoded) -> list[tuple[str, ...]]:
        return [tuple(example.values[role] for role in self._texts) for example in rows.examples]

    def through(self, backbone: Backbone, name: str, rows: Encoded) -> list[Any]:
        """The embeddings that ``predict`` gives the texts themselves.

        Raises:
            GateError: one isn't what training makes of the same text.
        """
        texts = [example.values[role] for example in rows.examples for role in self._texts]
        vectors = [torch.tensor(vector) for vector in backbone.predict(texts, name, batch_size=1)]
        flat = self._one_by_one(rows).features
        states = backbone.logits([feature["input_ids"] for feature in flat], name)
        for text, vector, own in zip(texts, vectors, states, strict=True):
            expected = self.outcome(own, {})
            if not float((vector - expected).norm() / expected.norm()) <= _CLOSE:
                raise GateError(f"predict gives {text[:60]!r} another embedding than training does")
        return list(torch.stack(vectors).split(len(self._texts)))

    def pooling(self) -> Pooling:
        """As the recipe says, else as suits the base."""
        return Pooling(self._mode, bool(self.recipe.embedding.normalize))
