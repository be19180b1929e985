"""``lorary tasks``: what the catalogue holds, tasks by domains."""

from __future__ import annotations

from lorary.hub.cli.matrix import MetricOption, print_overview
from lorary.hub.cli.options import CsvOption, JsonOption, RegistryOption, open_registry

EXAMPLES = ("lorary tasks", "lorary tasks --metric loss", "lorary tasks --csv")


def command(
    metric: MetricOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    registry: RegistryOption = None,
) -> None:
    """Show tasks by domains: how many versions, and the best score.

    Scores are those on held-out rows. A matrix that is too wide for the terminal goes on below; --json and --csv
    have a row for each cell, with its best version.
    """
    print_overview(open_registry(registry), "task", "domain", metric, as_json=as_json, as_csv=as_csv)
