"""Preference pairs for a language model: of two replies to a prompt, the better one is made likelier.

Direct preference optimisation (Rafailov et al. 2023) through TRL's ``DPOTrainer``. The reference is the model as it is
before the first step: its log-probabilities are computed once, and no second model is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorary.adapters import Backbone
from lorary.hub.errors import DataError
from lorary.training.data import Example, Note
from lorary.training.fitting.losses import IGNORED
from lorary.training.tasks.base import Answer, Metrics
from lorary.training.tasks.rows.coding import Coded
from lorary.training.tasks.rows.conversation import as_told, messages_of
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.rows.lengths import Length
from lorary.training.tasks.text_generation import TextGeneration, TokenScore

Scores = tuple[TokenScore, TokenScore]
_SHARED = ("input", "tools", "chat_template_kwargs")  # what both replies of a pair come after
_TIE = 1e-5  # rewards that differ by less differ by rounding alone


@dataclass(frozen=True)
class PairScore:
    """The log-probabilities (nats, summed over a reply's tokens) of both replies, and those of the reference."""

    chosen: TokenScore
    rejected: TokenScore
    reference_chosen: float
    reference_rejected: float

    @property
    def ratios(self) -> tuple[float, float]:
        """How much likelier than to the reference each reply is, in nats."""
        return -self.chosen.loss - self.reference_chosen, -self.rejected.loss - self.reference_rejected


class PreferencePairs(TextGeneration):
    """Causal language modelling on pairs of replies; ``collator`` and token ids are those of the chosen one."""

    main_metric = "reward_accuracy"

    def remark(self, encoded: Encoded, rows: Sequence[Coded], tokenizer: Any, note: Note) -> None:
        """Also pairs of the same reply, which teach nothing."""
        super().remark(encoded, rows, tokenizer, note)
        same = [example for example in encoded.examples if example.values["chosen"] == example.values["rejected"]]
        if same:
            note(f"{len(same)} of {len(rows)} pairs hold the same reply twice (first: {same[0].place})")

    def code(self, example: Example, tokenizer: Any, max_length: int) -> Coded:
        """A pair's token ids: ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``, as TRL's collator takes them.

        Raises:
            DataError: as :meth:`TextGeneration.code`; or the replies follow no common prompt.
        """
        prompts, replies = [], []
        lost = 0
        for values in _as_rows(example):
            chat = self._encode_one(values, tokenizer, example.place)
            ids, labels = chat.ids, chat.labels
            lost |= chat.lost
            start = next((place for place, label in enumerate(labels) if label != IGNORED), len(ids))
            prompts.append(ids[:start])
            replies.append(ids[start:])
        # Tokens may merge over the prompt's end; what isn't common to both sequences belongs to the replies.
        prompt = _common(*prompts)
        chosen, rejected = ([*own[len(prompt) :], *reply] for own, reply in zip(prompts, replies, strict=True))
        full = len(prompt) + max(len(chosen), len(rejected))
        room = max(0, max_length - len(prompt))
        prompt, chosen, rejected = prompt[:max_length], chosen[:room], rejected[:room]
        ids = [*prompt, *chosen]
        feature = {
            "input_ids": ids,
            "labels": [IGNORED] * len(prompt) + chosen,
            "attention_mask": [1] * len(ids),
            "prompt_ids": prompt,
            "chosen_ids": chosen,
            "rejected_ids": rejected,
        }
        return Coded((feature,), Length(full, min(full, max_length), chosen != rejected), (lost,))

    def refer(self, model: Any, rows: Encoded, tokenizer: Any, batch_size: int) -> Encoded:
        """The pairs with the reference's log-probabilities, which are ``model``'s as it is now."""
        scores = self._scores(model, rows, tokenizer, batch_size)
        features = [
            {**feature, "ref_chosen_logps": -chosen.loss, "ref_rejected_logps": -rejected.loss}
            for feature, (chosen, rejected) in zip(rows.features, scores, strict=True)
        ]
        return replace(rows, features=tuple(features))

    def trainer(self, model: Any, tokenizer: Any, settings: Mapping[str, Any], rows: Mapping[str, Any]) -> Any:
        """TRL's ``DPOTrainer``, for rows that :meth:`refer` has seen."""
        from lorary.training.fitting.preference import preference_trainer

        return preference_trainer(
            model, tokenizer, settings, rows, beta=self._beta, loss=str(self.recipe.preference.loss)
        )

    def figures(self) -> dict[str, Any]:
        """How the preferences were learned."""
        return {"preference": {"method": "dpo", "beta": self._beta, "loss": self.recipe.preference.loss}}

    @property
    def _beta(self) -> float:
        return float(self.recipe.preference.beta or 0.1)

    def outcomes(self, model: Any, rows: Encoded, tokenizer: Any, batch_size: int) -> list[Any]:
        """What a model makes of each pair, beside what the reference made of it."""
        return _paired(rows, self._scores(model, rows, tokenizer, batch_size))

    def _scores(self, model: Any, rows: Encoded, tokenizer: Any, batch_size: int) -> list[Scores]:
        scores = super().outcomes(model, _sequences(rows), tokenizer, batch_size)
        return list(zip(scores[: len(rows.features)], scores[len(rows.features) :], strict=True))

    def through(self, backbone: Backbone, name: str, rows: Encoded) -> list[Any]:
        """As :meth:`outcomes`, with the log-probabilities of the adapter as it was loaded."""
        scores = super().through(backbone, name, _sequences(rows))
        return _paired(rows, list(zip(scores[: len(rows.features)], scores[len(rows.features) :], strict=True)))

    def sequences(self, features: Sequence[Feature]) -> Sequence[Feature]:
        """Both replies of each pair."""
        return _sequences(Encoded((), tuple(features), ())).features

    def widths(self, feature: Feature) -> tuple[int, ...]:
        """Both replies' sequences are padded alike."""
        return (len(feature["prompt_ids"]) + max(len(feature["chosen_ids"]), len(feature["rejected_ids"])),)

    def shortened(self, feature: Feature, length: int) -> Feature:
        """Prompt and replies, as rows are cut."""
        prompt, room = feature["prompt_ids"][:length], max(0, length - len(feature["prompt_ids"]))
        replies = {name: feature[name][:room] for name in ("chosen_ids", "rejected_ids")}
        return {**super().shortened(feature, length), "prompt_ids": prompt, **replies}

    def answer(self, example: Example, gold: Any, outcome: Any) -> Answer:
        """The prompt, the better reply, and how the rewards of both came out."""
        turns = [as_told(message) for message in messages_of(_as_rows(example)[0])]
        chosen, rejected = (self._beta * ratio for ratio in outcome.ratios)
        return Answer(
            "\n".join(turns[:-1]), turns[-1], f"reward {chosen:.3f} against {rejected:.3f}", chosen > rejected
        )

    def measured_on(self, rows: Encoded) -> Iterable[Any]:
        """The pairs, whatever they are in tokens: which reply is preferred is a question of the texts."""
        return rows.golds

    def losses(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Sequence[float]:
        """The pairs'."""
        return [self.metrics([outcome], [None])["loss"] for outcome in outcomes]

    def metrics(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Metrics:
        """Means over pairs, named as TRL's: the loss; how often the chosen reply's reward (beta times its ratio, nats)
        is the larger, ties counting half; by how much; and the log-probabilities of the replies."""
        ratios = torch.tensor([score.ratios for score in outcomes], dtype=torch.float64)
        lengths = torch.tensor([(score.chosen.tokens, score.rejected.tokens) for score in outcomes])
        margin = self._beta * (ratios[:, 0] - ratios[:, 1])
        right = torch.where(margin.abs() < _TIE, 0.5, (margin > 0).double())
        return {
            "loss": float(self._losses(ratios, lengths).mean()),
            "reward_accuracy": float(right.mean()),
            "reward_margin": float(margin.mean()),
            "chosen_logps": -sum(score.chosen.loss for score in outcomes) / len(outcomes),
            "rejected_logps": -sum(score.rejected.loss for score in outcomes) / len(outcomes),
        }

    def _losses(self, ratios: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The loss of each pair; ``ratios`` and ``lengths`` (in tokens) are [pairs, 2], the chosen replies first."""
        difference = ratios[:, 0] - ratios[:, 1]
        if self.recipe.preference.loss == "hinge":
            return torch.relu(1 - self._beta * difference)
        if self.recipe.preference.loss == "ipo":
            # Means over tokens rather than sums, as TRL has it from the paper's authors.
            means = ratios / lengths.clamp(min=1)
            return (means[:, 0] - means[:, 1] - 1 / (2 * self._beta)) ** 2
        return torch.nn.functional.softplus(-self._beta * difference)


def _paired(rows: Encoded, scores: Sequence[Scores]) -> list[Any]:
    return [
        PairScore(chosen, rejected, feature["ref_chosen_logps"], feature["ref_rejected_logps"])
        for feature, (chosen, rejected) in zip(rows.features, scores, strict=True)
    ]


def _sequences(rows: Encoded) -> Encoded:
    """Every chosen reply after its prompt, then every rejected one."""
    features = []
    for role in ("chosen_ids", "rejected_ids"):
        for feature in rows.features:
            ids = [*feature["prompt_ids"], *feature[role]]
            labels = [IGNORED] * len(feature["prompt_ids"]) + feature[role]
            features.append({"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)})
    return Encoded(rows.examples * 2, tuple(features), rows.golds * 2)


def _as_rows(example: Example) -> list[dict[str, Any]]:
    """A pair as two rows of a prompt and a completion.

    Raises:
        DataError: without a prompt of their own, the replies have no beginning in common.
    """
    values = example.values
    pair: list[Any] = [values["chosen"], values["rejected"]]
    prompt = values.get("prompt")
    whole = isinstance(pair[0], list) and pair[0][0]["role"] in ("system", "user")
    if prompt is None or (whole and not isinstance(prompt, list)):
        # Whole chats, or whole texts: the prompt is what they have in common.
        prompt = _common(*pair)
        if isinstance(prompt, list):
            # Of a pair that is the same twice, too, the last turn is the reply.
            prompt = prompt[: min(len(prompt), len(pair[0]) - 1, len(pair[1]) - 1)]
        else:
            # Up to the last whole word; most tokenizers count the space before a word as part of it.
            prompt = prompt[: max(0, *(prompt.rfind(mark) for mark in " \n\t"))]
        if not prompt:
            raise DataError("rows", [f"{example.place}: chosen and rejected begin differently; name a prompt column"])
        pair = [reply[len(prompt) :] for reply in pair]
    shared = {"prompt": prompt, **{role: values[role] for role in _SHARED if role in values}}
    return [{**shared, "completion": reply} for reply in pair]


def _common(first: Any, second: Any) -> Any:
    """What two sequences begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))]
