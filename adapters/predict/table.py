"""Which class reads which task, and which of a call's parameters are for which task."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from lorary.adapters.predict.base import RowPredictor, Setting
from lorary.adapters.predict.feature_extraction import FeatureRows
from lorary.adapters.predict.fill_mask import FillMaskRows
from lorary.adapters.predict.generation import GENERATED
from lorary.adapters.predict.question_answering import QuestionAnsweringRows
from lorary.adapters.predict.text_classification import TextClassificationRows
from lorary.adapters.predict.token_classification import TokenClassificationRows
from lorary.hub.errors import UnsupportedAdapterError, UsageError
from lorary.hub.manifest import Preprocessing

if TYPE_CHECKING:
    from lorary.adapters.adapter import Adapter
    from lorary.adapters.through_peft.adapter import PeftAdapter

PREDICTORS: Mapping[str, type[RowPredictor]] = {
    "text-classification": TextClassificationRows,
    "token-classification": TokenClassificationRows,
    "question-answering": QuestionAnsweringRows,
    "fill-mask": FillMaskRows,
    "feature-extraction": FeatureRows,
}
"""The tasks whose rows are scored in one pass; those of :data:`GENERATED` take many."""

Parameters = Mapping[str, Mapping[str, Any]]


def task_of_row(adapter: Adapter | PeftAdapter | None) -> str:
    """What is asked of a row; the bare backbone gives its hidden states."""
    return adapter.task if adapter is not None else "feature-extraction"


def share_parameters(tasks: Collection[str], params: Mapping[str, Any]) -> Parameters:
    """The parameters of a call by task: each goes to all tasks of the call that take it.

    Generation takes those of transformers' ``GenerationConfig``, and whatever no other task of the call knows.

    Raises:
        UsageError: a parameter that no task of the call takes; a slip of the pen should be heard of.
    """
    scoring = {task: PREDICTORS[task].parameters for task in tasks if task in PREDICTORS}
    known = frozenset().union(*scoring.values())
    generating = {task for task in tasks if task in GENERATED}
    unknown = sorted(params.keys() - known)
    if unknown and not generating:
        raise UsageError(f"predict doesn't take {', '.join(unknown)} here; known: {', '.join(sorted(known)) or 'none'}")
    shares = {task: {name: params[name] for name in params.keys() & names} for task, names in scoring.items()}
    settings = _generation_settings() if generating else frozenset()
    own = {name: value for name, value in params.items() if name not in known or name in settings}
    return shares | dict.fromkeys(generating, own)


def _generation_settings() -> frozenset[str]:
    from transformers import GenerationConfig

    return frozenset(vars(GenerationConfig()))


def answer_alone(task: str, row: Any, answer: Any) -> Any:
    """The answer to a single row: the pipelines of some tasks return a list even for one text."""
    listed = task in ("text-classification", "summarization", "translation")
    return [answer] if listed and isinstance(row, str) and isinstance(answer, dict) else answer


def row_predictor(
    adapter: Adapter | None, tokenizer: Any, max_length: int | None, params: Mapping[str, Any]
) -> RowPredictor:
    """The predictor for an adapter's rows; None is the bare backbone, whose answer is its hidden states.

    Args:
        adapter: a loaded adapter.
        tokenizer: that of its rows.
        max_length: the most tokens that the backbone takes.
        params: the task's share of the call's parameters.

    Raises:
        UnsupportedAdapterError: the adapter's task has no predictor.
        UsageError: a parameter's value that the task doesn't take, or there is no tokenizer.
    """
    if tokenizer is None:
        raise UsageError("this backbone was loaded without a tokenizer; pass one to Backbone.from_model")
    task = task_of_row(adapter)
    if task not in PREDICTORS:
        raise UnsupportedAdapterError(f"predict doesn't know the task {task!r}; use `using` for raw logits")
    manifest = adapter.manifest if adapter else None
    # What sentence-transformers left is about embeddings alone.
    told = adapter.checkpoint if adapter and (manifest or task == "feature-extraction") else None
    setting = Setting(
        model=adapter.head.model if adapter and adapter.head else None,
        tokenizer=tokenizer,
        preprocessing=told.preprocessing if told else Preprocessing(),
        pooling=told.pooling if told else None,
        longest=max_length,
        answering=manifest.answering if manifest else None,
        thresholds=manifest.thresholds if manifest else None,
    )
    return PREDICTORS[task](setting, params)
