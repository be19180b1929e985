"""The report as one HTML page that needs nothing beside it: no script, no request, every text escaped."""

from __future__ import annotations

import base64
from pathlib import Path

from lorary.hub.metrics import SPLITS, splits_of
from lorary.training.report.content import Report
from lorary.training.report.figures import curves, folds, mistakes


def page(report: Report) -> str:
    """The page's HTML."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    splits = splits_of(report.metrics)
    return environment.from_string(template).render(
        report=report,
        splits=splits,
        split_names={split: SPLITS.get(split, "") for split in splits},
        metric_names=list(dict.fromkeys(name for split in splits for name in report.metrics[split])),
        curves=_inline(curves(report)) if report.points else "",
        folds=_inline(folds(report.folds, report.main_metric)) if report.folds else "",
        mistakes=_inline(mistakes(report.mistakes)) if report.mistakes else "",
    )


def _inline(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")


def write_pages(report: Report, folder: Path) -> None:
    """Write ``report.json``, ``report.html`` and the figures into ``folder``."""
    report.write(folder)
    (folder / "report.html").write_text(page(report), encoding="utf-8")
    if report.points:
        (folder / "curves.png").write_bytes(curves(report))
    if report.folds:
        (folder / "folds.png").write_bytes(folds(report.folds, report.main_metric))
    if report.mistakes:
        (folder / "mistakes.png").write_bytes(mistakes(report.mistakes))
