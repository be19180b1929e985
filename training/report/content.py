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
    """All of a report; ``ranked`` is how many held-out rows the worst ones were chosen from."""

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
        return Report.model_validate(raw)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{shown}: {REPORT_DATA} can't be read ({error})") from error
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise CheckpointError(f"{shown}: {REPORT_DATA} isn't a report ({where}: {first['msg']})") from error
    except ValueError as error:
        raise CheckpointError(f"{shown}: {REPORT_DATA} isn't valid JSON ({error})") from error
