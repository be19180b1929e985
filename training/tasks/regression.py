"""Text regression: a number for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lorary.adapters.heads.numbers import answer_in_float32
from lorary.hub.manifest import REGRESSION
from lorary.training.data import Example, Note
from lorary.training.recipe import Recipe
from lorary.training.report.content import Mistakes
from lorary.training.tasks.base import Answer, Metrics
from lorary.training.tasks.heads.level import Level, final_states
from lorary.training.tasks.heads.scale import Scale, last_layer
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from lorary.training.fitting.losses import Loss

_CONSTANT = 1e-6  # predictions that differ by less, relative to their size, differ by rounding alone
_FAR = 10  # deviations from zero, of which bfloat16's rounding of the whole number is 4% of one


class TextRegression(TextClassification):
    """The head's one output, trained by its squared error on standardised numbers."""

    main_metric = "rmse"
    problem_type = REGRESSION

    def __init__(self, recipe: Recipe, labels: tuple[str, ...] | None) -> None:
        super().__init__(recipe, labels)
        self._scale = Scale()
        self._goes_on = False
        self._far = False

    def meet(self, model: Any, tokenizer: Any, max_length: int, note: Note) -> int:
        """Let the head's last layer compute in float32, as it is served (:mod:`lorary.adapters.heads.numbers`)."""
        answer_in_float32(model)
        return super().meet(model, tokenizer, max_length, note)

    def keep_head(self) -> None:
        """It answers with the data's own numbers."""
        self._goes_on = True

    def target(self, label: Any) -> float:
        """The number itself."""
        return float(label)

    def criterion(self, train: Any) -> Loss | None:
        """The mean squared error of standardised numbers."""
        from lorary.training.fitting.losses import SquaredError

        return SquaredError(self._scale.mean, self._scale.deviation)

    @contextmanager
    def scaled(self, model: Any, train: Encoded, tokenizer: Any) -> Iterator[None]:
        """Within the block, the head answers with standardised numbers (:mod:`lorary.training.tasks.heads.scale`)."""
        layer = last_layer(model)
        if layer is None:
            yield
            return
        self._scale = self._begin(model, layer, train, tokenizer)
        try:
            yield
        finally:
            # Loading a checkpoint may have put another module in the layer's place.
            trained = last_layer(model)
            if trained is not None:
                self._scale.fold(trained)
            self._scale = Scale()

    def _begin(self, model: Any, layer: torch.nn.Linear, train: Encoded, tokenizer: Any) -> Scale:
        """Let the layer begin at the mean of the rows, or where it was; the scale that it is trained on."""
        scale = Scale.of(train.golds)
        bias: torch.Tensor | None = layer.bias
        self._far = bias is None and abs(scale.mean) > _FAR * scale.deviation
        if self._goes_on:
            scale = scale if bias is not None else scale.with_mean
            scale.unfold(layer)
        if self._goes_on or bias is not None:
            return scale
        states = final_states(model, layer, self, train, tokenizer)
        level = Level.of(states)
        if level.carries(scale):
            level.begin(layer, scale, states)
            return scale.with_mean
        self.notices.append(
            f"the labels lie {abs(scale.mean) / scale.deviation:.0f} times their deviation from 0, and the base's head "
            f"has no bias for their mean: labels with {scale.mean:.4g} taken off would be learned better"
        )
        return scale.from_zero

    def outcome(self, logits: torch.Tensor, feature: Feature) -> Any:
        """The head's output; while it is trained, what it will be."""
        return float(logits.float().item()) * self._scale.deviation + self._scale.mean

    def found(self, outcome: Any) -> Any:
        """The outcome is the answer."""
        return outcome

    def of_prediction(self, scores: dict[str, float]) -> Any:
        """The one score of a prediction."""
        return scores[self.labels[0]]

    def metrics(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Metrics:
        """Pearson's and Spearman's correlation (scipy), and the errors ``rmse``, ``mse`` and ``mae`` (scikit-learn).

        Predictions that are all the same have a correlation of 0; where the rows' own numbers are all the same, none
        is given.
        """
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import mean_absolute_error, mean_squared_error

        found, truth = np.asarray(outcomes, dtype=np.float64), np.asarray(golds, dtype=np.float64)
        mse = float(mean_squared_error(truth, found))
        correlations: Metrics = {}
        if np.ptp(truth) > 0:
            constant = np.ptp(found) <= _CONSTANT * max(1e-12, float(np.abs(found).max()))
            correlations = {
                "pearson": 0.0 if constant else float(pearsonr(truth, found).statistic),
                "spearman": 0.0 if constant else float(spearmanr(truth, found).statistic),
            }
        return {**correlations, "rmse": mse**0.5, "mse": mse, "mae": float(mean_absolute_error(truth, found))}

    def scoring(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Callable[[Sequence[int]], float]:
        """``rmse`` from each row's error."""
        squares = (np.asarray(golds, dtype=np.float64) - np.asarray(outcomes, dtype=np.float64)) ** 2
        return lambda places: float(squares[np.asarray(places)].mean()) ** 0.5

    def main_score(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> float:
        """``rmse`` alone."""
        return self.scoring(outcomes, golds)(range(len(golds)))

    def gated(self, metrics: Metrics, dtype: str) -> Metrics:
        """In half precision the correlation of answers that hardly differ hangs on how they were rounded.

        So do their errors where all of a number that is far from zero comes out of rounded states.
        """
        if dtype == "float32":
            return metrics
        left_out = metrics.keys() if self._far else {"pearson", "spearman"}
        return {name: value for name, value in metrics.items() if name not in left_out}

    def caveats(self, golds: Sequence[Any]) -> Sequence[str]:
        """Rows that all have the same number, with which nothing correlates."""
        return ["no correlation: the held-out rows all have the same number"] if len(set(golds)) < 2 else []

    def mistakes(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Mistakes | None:
        """Nothing: numbers are more or less wrong."""
        return None

    def answer(self, example: Example, gold: Any, outcome: Any) -> Answer:
        """Both numbers; right where they round to the same three digits."""
        expected, found = f"{gold:.4g}", f"{outcome:.4g}"
        given = super().answer(example, gold, outcome).given
        return Answer(given, expected, found, f"{gold:.3g}" == f"{outcome:.3g}")

    def baselines(self, data: Sequence[Example], train: Encoded, test: Encoded, tokenizer: Any) -> dict[str, Metrics]:
        """``mean``: the metrics of always answering the training rows' mean."""
        mean = fmean(example.values["label"] for example in data)
        return {"mean": self.metrics([mean] * len(test.golds), test.golds)}
