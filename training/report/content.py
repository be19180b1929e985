"""A report's content, as plain values: what ``report.json`` holds and the page and the figures are made from.

The page that is shown is always made anew from this file, so that nobody opens a page that a stranger wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lorary.hub.checkpoint import REPORT_DATA
from lorary.hub.errors import CheckpointError
from lorary.hub.jsontext import load_json

FORMAT = 1
_MOST_NAMES = 300  # rows or columns that can be drawn


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Point(_Part):
    """One optimizer step: the loss on its batches, the learning rate, the gradients' norm before clipping."""

    step: int
    loss: float
    learning_rate: float | None = None
    gradient: float | None = None


class Validation(_Part):
    """The validation rows after ``step`` steps: the loss, and the task's main metric where it was measured."""

    step: int
    loss: float
    metric: float | None = None


class Curve(_Part):
    """One of several runs: its ``name``, and its curves."""

    name: str
    points: tuple[Point, ...] = ()
    validations: tuple[Validation, ...] = ()


class Mistakes(_Part):
    """Answers counted: ``counts[i][j]`` rows (or spans) of ``rows[i]`` fell under ``columns[j]``.

    A ``confusion`` has the true label in its rows and the answer in its columns; ``spans`` has an entity type in each
    row, and what became of its entities in the columns.
    """

    kind: Literal["confusion", "spans"]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class WorstRow(_Part):
    """One of the held-out rows with the highest loss (nats)."""

    place: str
    given: str
    expected: str
    found: str
    loss: float
    right: bool


class Report(_Part):
    """All of a report; ``ranked`` is how many held-out rows the worst ones were chosen from.

    ``folds`` has the curves of a cross-validation's runs. ``crossed``: its runs held every row out once, and metrics,
    mistakes and worst rows are theirs; the curves of the report itself are those of the run on all rows.
    """

    format: int = FORMAT
    name: str
    domain: str
    task: str
    base: str
    method: str
    main_metric: str
    metrics: dict[str, dict[str, float]]
    points: tuple[Point, ...] = ()
    validations: tuple[Validation, ...] = ()
    mistakes: Mistakes | None = None
    worst: tuple[WorstRow, ...] = ()
    ranked: int = 0
    folds: tuple[Curve, ...] = ()
    crossed: bool = False
    notices: tuple[str, ...] = ()
    facts: dict[str, str] = {}
    recipe: str = ""

    def write(self, folder: Path) -> None:
        """Write ``report.json`` into ``folder``."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)
        (folder / REPORT_DATA).write_text(text + "\n", encoding="utf-8")


def read_report(path: Path, shown: str) -> Report:
    """Read a ``report.json``; ``shown`` names the adapter in errors.

    Raises:
        CheckpointError: it isn't one, or a newer lorary wrote it.
    """
    try:
        raw = load_json(path.read_text(encoding="utf-8"))
        if isinstance(raw, Mapping) and isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
            raise CheckpointError(f"{shown}: its report was written by a newer lorary; upgrade lorary to see it")
        report = Report.model_validate(raw)
        _demand_drawable(report)
        return report
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{shown}: {REPORT_DATA} can't be read ({error})") from error
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise CheckpointError(f"{shown}: {REPORT_DATA} isn't a report ({where}: {first['msg']})") from error
    except ValueError as error:
        raise CheckpointError(f"{shown}: {REPORT_DATA} can't be used ({error})") from error


def _demand_drawable(report: Report) -> None:
    """Figures are drawn of it: it comes from strangers, and some numbers can't be drawn, or take the memory for it.

    Raises:
        ValueError: it can't be.
    """
    runs: list[Report | Curve] = [report, *report.folds]
    points = [point for run in runs for point in run.points]
    validations = [part for run in runs for part in run.validations]
    parts: list[Point | Validation] = [*points, *validations]
    steps, values = [part.step for part in parts], [part.loss for part in parts]
    values += [value for point in points for value in (point.learning_rate, point.gradient) if value is not None]
    values += [part.metric for part in validations if part.metric is not None]
    if len(report.folds) > _MOST_NAMES:
        raise ValueError(f"it has more than {_MOST_NAMES} folds")
    if any(not 0 <= step < 10**12 for step in steps) or any(abs(value) > 1e30 for value in values):
        raise ValueError("a step or a value of a curve is out of all bounds")
    found = report.mistakes
    if found is None:
        return
    square = len(found.counts) == len(found.rows) and all(len(row) == len(found.columns) for row in found.counts)
    if not square or not 0 < len(found.rows) <= _MOST_NAMES or not 0 < len(found.columns) <= _MOST_NAMES:
        raise ValueError(f"the table of mistakes isn't one of 1 to {_MOST_NAMES} rows and columns")
    if any(not 0 <= count < 10**12 for row in found.counts for count in row):
        raise ValueError("a count of mistakes is out of all bounds")
