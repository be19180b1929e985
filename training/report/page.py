"""The report as one HTML page that needs nothing beside it: no script, no request, every text escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

from lorary.hub.metrics import SPLITS, splits_of
from lorary.training.report.content import Report
from lorary.training.report.figures import curves, folds, mistakes


def page(report: Report, figures: Mapping[str, bytes] | None = None) -> str:
    """The page's HTML.

    Args:
        report: what it shows.
        figures: those of :func:`drawn`, where they have been drawn already.
    """
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    splits = splits_of(report.metrics)
    pngs = drawn(report) if figures is None else figures
    inline = {name: base64.b64encode(png).decode("ascii") for name, png in pngs.items()}
    return environment.from_string(template).render(
        report=report,
        splits=splits,
        split_names={split: SPLITS.get(split, "") for split in splits},
        metric_names=list(dict.fromkeys(name for split in splits for name in report.metrics[split])),
        curves=inline.get("curves", ""),
        folds=inline.get("folds", ""),
        mistakes=inline.get("mistakes", ""),
    )


def drawn(report: Report) -> dict[str, bytes]:
    """The report's figures by name, as PNG."""
    figures = {}
    if report.points:
        figures["curves"] = curves(report)
    if report.folds:
        figures["folds"] = folds(report.folds, report.main_metric)
    if report.mistakes:
        figures["mistakes"] = mistakes(report.mistakes)
    return figures


def write_pages(report: Report, folder: Path) -> None:
    """Write ``report.json``, ``report.html`` and the figures into ``folder``."""
    report.write(folder)
    figures = drawn(report)
    (folder / "report.html").write_text(page(report, figures), encoding="utf-8")
    for name, png in figures.items():
        (folder / f"{name}.png").write_bytes(png)
