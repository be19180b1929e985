"""``lorary domains``: what the catalogue holds, domains by tasks."""

from __future__ import annotations

from lorary.hub.cli.matrix import MetricOption, print_overview
from lorary.hub.cli.options import CsvOption, JsonOption, RegistryOption, open_registry

EXAMPLES = ("lorary domains", "lorary domains --metric f1", "lorary domains --json")


def command(
    metric: MetricOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    registry: RegistryOption = None,
) -> None:
    """Show domains by tasks: how many versions, and the best score.

    Scores are those on held-out rows. A matrix that is too wide for the terminal goes on below; --json and --csv
    have a row for each cell, with its best version.
    """
    print_overview(open_registry(registry), "domain", "task", metric, as_json=as_json, as_csv=as_csv)
