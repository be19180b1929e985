"""A file per task: its model class, how its rows become token ids, its collator, its metrics."""

from __future__ import annotations

from collections.abc import Mapping

from lorary.hub.manifest import MULTI_LABEL, REGRESSION
from lorary.training.recipe import Recipe
from lorary.training.tasks.answers import WrittenAnswers
from lorary.training.tasks.base import Task
from lorary.training.tasks.causal_blocks import CausalBlocks
from lorary.training.tasks.feature_extraction import FeatureExtraction
from lorary.training.tasks.fill_gaps import FillGaps, writes_what_it_reads
from lorary.training.tasks.fill_mask import FillMask
from lorary.training.tasks.multi_label import MultiLabelClassification
from lorary.training.tasks.preference import PreferencePairs
from lorary.training.tasks.question_answering import QuestionAnswering
from lorary.training.tasks.regression import TextRegression
from lorary.training.tasks.rows.encoded import Encoded
from lorary.training.tasks.summarization import Summarization
from lorary.training.tasks.text_classification import TextClassification
from lorary.training.tasks.text_generation import TextGeneration
from lorary.training.tasks.token_classification import TokenClassification
from lorary.training.tasks.translation import Translation

TASKS: Mapping[str, type[Task]] = {
    task.name: task
    for task in (
        TextClassification,
        TokenClassification,
        QuestionAnswering,
        TextGeneration,
        FillMask,
        FeatureExtraction,
        Summarization,
        Translation,
    )
}
"""The tasks that can be trained; a new one is a file here, a line in this table and its name in the recipe."""


_PROBLEMS: Mapping[str | None, type[Task]] = {MULTI_LABEL: MultiLabelClassification, REGRESSION: TextRegression}


def make_task(recipe: Recipe, labels: tuple[str, ...] | None, problem_type: str | None = None) -> Task:
    """The task of a recipe, for these labels; ``problem_type`` is what text classification's are."""
    if recipe.data.columns.chosen is not None:
        return PreferencePairs(recipe, labels)
    if recipe.task == "fill-mask" and writes_what_it_reads(recipe):
        return FillGaps(recipe, labels)
    if recipe.strategy == "continual" and recipe.task == "text-generation":
        return CausalBlocks(recipe, labels)
    if recipe.generation.rows and recipe.task == "text-generation":
        return WrittenAnswers(recipe, labels)
    return _PROBLEMS.get(problem_type, TASKS[recipe.task])(recipe, labels)


__all__ = ["TASKS", "Encoded", "Task", "make_task"]
