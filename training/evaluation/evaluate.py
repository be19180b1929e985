"""Registered adapters, folders and the Hub's, measured side by side on the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.adapters import Backbone
from lorary.adapters.backbone.sources import Source, demand_stated, find_checkpoint
from lorary.adapters.matching.support import check_supported
from lorary.hub.errors import DataError, UsageError
from lorary.hub.pretrained_bases import bases_of
from lorary.hub.registry import Registry
from lorary.training.data import Examples, load_rows
from lorary.training.evaluation.manner import as_measured
from lorary.training.evaluation.notices import Notices
from lorary.training.evaluation.recipe import recipe_for
from lorary.training.experiments.bootstrap import Difference, paired_bootstrap
from lorary.training.model import Shelf, load_for, with_tokens, without_tokens
from lorary.training.prepare import encode_parts
from lorary.training.progress import Reporter, quiet_libraries
from lorary.training.recipe import Recipe
from lorary.training.tasks import Encoded, Task, make_task
from lorary.training.tasks.base import Answer, Metrics

_AT_ONCE = 32  # rows, after which the bar moves
_FEW = 30


@dataclass(frozen=True)
class Evaluated:
    """One adapter, measured: its reference and digest, its metrics, and what it made of each row.

    ``places``: each answer's file and row. An answer may stand for less than a row, or for more: a turn of a chat, a
    block of running text.
    """

    reference: str
    digest: str
    metrics: Metrics
    answers: Sequence[Answer]
    places: Sequence[str]


@dataclass(frozen=True)
class Evaluation:
    """Adapters measured on the same rows.

    ``metric`` is the task's main one. ``baselines``: the metrics of what knows the rows' labels but not their texts, by
    its name. ``differences``: how each adapter but the first differs from the first, in their order; None where what
    they are measured on isn't the same: other rows or answers, or for a loss other tokens.
    """

    task: str
    rows: int
    metric: str
    adapters: Sequence[Evaluated]
    baselines: Mapping[str, Metrics]
    differences: Sequence[Difference | None]


@dataclass(frozen=True)
class _Measured:
    task: Task
    rows: Encoded
    outcomes: list[Any]
    baselines: Mapping[str, Metrics]


def evaluate(
    references: Sequence[str | Path],
    data: str,
    registry: Registry | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
    progress: Reporter | None = None,
) -> Evaluation:
    """Measure adapters on rows with known answers, through the loader, each on the base that it names.

    Nothing is trained or registered. Rows are read, checked and encoded as in training, by what each adapter's manifest
    says of columns, labels, lengths and prompts.

    Args:
        references: of one task.
        data: the rows, as ``data.train`` in a recipe names them.
        settings: dotted keys of a recipe and their values, over what the adapters say: ``base``, ``quantization``,
            ``data.columns.text``, ``training.max_length``, ...
        overrides: the same as ``key=value`` texts.

    Raises:
        UsageError: the references are of different tasks, are the same one, or name no base.
        ChangedFilesError: an adapter's files aren't what the catalogue says they are.
        UnknownReferenceError: one names nothing.
        DataError: rows that can't be used, all of them by file and number.
        RecipeError: settings that contradict each other or the adapter.
        BaseNotFoundError: a base can't be found or loaded.
        LoraryError: an adapter can't be loaded on its base; the message says why.
    """
    reporter, registry = progress or Reporter(), registry or Registry()
    sources = [find_checkpoint(reference, registry) for reference in references]
    named: dict[str, str | Path] = {}
    for reference, source in zip(references, sources, strict=True):
        check_supported(source.checkpoint)
        if source.reference in named:
            raise UsageError(f"{named[source.reference]} and {reference} are both {source.reference}; leave one out")
        named[source.reference] = reference
    overrides = tuple(overrides)
    recipes = [recipe_for(source, data, settings or {}, overrides) for source in sources]
    tasks = {recipe.task: source.reference for recipe, source in zip(recipes, sources, strict=True)}
    if len(tasks) > 1:
        told = ", ".join(f"{reference} is for {task}" for task, reference in tasks.items())
        raise UsageError(f"adapters of one task can be measured on the same rows; {told}")
    for source in sources:  # not while it is loaded: it is asked by a manifest that the catalogue doesn't have
        demand_stated(source, source.checkpoint.digest)
    reporter.phase("reading the data")
    notices = Notices(reporter, [source.reference for source in sources])
    with notices.gathered():
        rows = [
            _rows_for(source, recipe, notices.of(source.reference))
            for source, recipe in zip(sources, recipes, strict=True)
        ]
    shelf, measured = Shelf(), []
    with quiet_libraries(), bases_of(registry), notices.gathered():
        for source, recipe, examples in zip(sources, recipes, rows, strict=True):
            measured.append(_measure(source, recipe, examples, shelf, registry, notices.of(source.reference)))
    reporter.phase("done")
    first = measured[0]
    if len(measured) > 1 and (count := len(first.rows.examples)) < _FEW:
        reporter.note(f"{count} rows are few to tell adapters apart by: others may well say otherwise")
    return Evaluation(
        first.task.name,
        len(first.rows.examples),
        first.task.main_metric,
        [_evaluated(source, found) for source, found in zip(sources, measured, strict=True)],
        first.baselines,
        [_difference(found, first) for found in measured[1:]],
    )


def _rows_for(source: Source, recipe: Recipe, reporter: Reporter) -> Examples:
    """The rows as an adapter takes them."""
    try:
        return load_rows(recipe, reporter.note)
    except DataError as error:
        raise DataError(f"{source.reference}, {error.subject}", error.problems, error.hints) from error


def _measure(
    source: Source, recipe: Recipe, examples: Examples, shelf: Shelf, registry: Registry, reporter: Reporter
) -> _Measured:
    task = make_task(recipe, examples.labels, examples.problem_type)
    task.begin(examples.test)
    base = shelf.take(recipe, task)
    if base is None:
        reporter.phase("loading the base")
        base = load_for(task, recipe)
        base.model.requires_grad_(False)
    own = with_tokens(base, recipe, source.checkpoint, lambda line: None)
    encoded, _, max_length = encode_parts(recipe, {"test": examples.test}, task, own, reporter)
    for line in task.caveats(encoded["test"].golds):
        reporter.note(line)
    rows = task.refer(own.model, encoded["test"], own.tokenizer, recipe.training.batch_size)
    baselines = task.baselines(examples.test, rows, rows, own.tokenizer)
    checkpoint = as_measured(source.checkpoint, recipe, task, own.tokenizer, max_length)
    without_tokens(own.model, own)
    backbone = Backbone.from_model(base.model, base.tokenizer, identity=base.identity, slots=1, registry=registry)
    reporter.phase(f"measuring {source.reference}")
    adapter = backbone.load(checkpoint, source.name)
    for line in adapter.notes:
        reporter.note(line)
    outcomes = _outcomes(task, backbone, adapter.name, rows, reporter)
    backbone.release()
    shelf.put(recipe, task, base)
    return _Measured(task, rows, outcomes, baselines)


def _outcomes(task: Task, backbone: Backbone, name: str, rows: Encoded, reporter: Reporter) -> list[Any]:
    """What an adapter makes of each row, with the bar moved on as they are answered."""
    if not task.scored_in_one_pass:  # texts are generated for some rows, chosen among all
        return task.through(backbone, name, rows)
    total, found = len(rows.examples), []
    for first in range(0, total, _AT_ONCE):
        found += task.through(backbone, name, rows.pick(range(first, min(first + _AT_ONCE, total))))
        reporter.step(len(found), total, math.nan)
    return found


def _evaluated(source: Source, found: _Measured) -> Evaluated:
    metrics = found.task.metrics(found.outcomes, found.rows.golds)
    places = [example.place for example in found.rows.examples]
    answers = found.task.answers(found.rows, found.outcomes)
    return Evaluated(source.reference, source.checkpoint.digest, metrics, answers, places)


def _difference(ours: _Measured, first: _Measured) -> Difference | None:
    """How an adapter's answers differ from the first one's; None where what is measured isn't the same for both."""
    rows = [[example.place for example in one.rows.examples] for one in (ours, first)]
    asked = (one.task.measured_on(one.rows) for one in (ours, first))
    if rows[0] != rows[1] or any(own != theirs for own, theirs in zip(*asked, strict=True)):
        return None
    against = first.task, first.rows.golds
    return paired_bootstrap(ours.task, ours.rows.golds, [ours.outcomes], [first.outcomes], against=against)
