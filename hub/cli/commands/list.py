"""``lorary list``: the catalogue as a table."""

from __future__ import annotations

from typing import Annotated

import typer

from lorary.hub.cli.base_option import base_to_find
from lorary.hub.cli.damaged import readable, tell_damaged
from lorary.hub.cli.list_remote import EverybodyOption, RemoteOption, print_remote
from lorary.hub.cli.options import CsvOption, JsonOption, RegistryOption, no_registry, one_form, open_registry
from lorary.hub.cli.output import (
    print_csv,
    print_json_list,
    print_line,
    print_note,
    print_table,
    short_number,
    version_json,
)
from lorary.hub.finding.search import NUMBERS, Filter, parse_comparison
from lorary.hub.metrics import headline
from lorary.hub.registry_path import suggested
from lorary.hub.values import Unreadable, Version

EXAMPLES = (
    "lorary list --domain finance --task text-classification",
    'lorary list --search "tone llama" --sort f1 --limit 10',
    'lorary list --where "f1>=0.9" --where "parameters<1000000" --csv',
    "lorary list --from finance-tone@1",
    "lorary list --remote org --domain finance",
)

# What a narrow terminal does without, in this order.
_EXPENDABLE = ("created", "strategy", "method", "base", "aliases", "size", "parameters", "rank")
_SHOWN = 50


def command(
    context: typer.Context,
    domain: Annotated[str | None, typer.Option(help="Only this domain.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task, a pipeline tag.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Only adapters of this base: an id, a fingerprint or a folder.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Only this method: lora, qlora, dora, ...")] = None,
    strategy: Annotated[str | None, typer.Option(help="Only what came to be so: fine-tune, blend, ...")] = None,
    tag: Annotated[str | None, typer.Option(help="Only versions with this tag.")] = None,
    alias: Annotated[str | None, typer.Option(help="Only versions with this alias.")] = None,
    search: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Only versions that mention these words, or words that begin with them."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COMPARISON", help='Such as "f1>=0.9" or "rank<=8"; may be repeated.'),
    ] = None,
    ancestor: Annotated[
        str | None,
        typer.Option("--from", metavar="REF", help="Only what was trained from this version, also over others."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A metric, best first, or a column: name, created (newest first), size, ..."),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Sort the other way round.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Show at most so many; 0 for all.")] = _SHOWN,
    remote: RemoteOption = None,
    everybody: EverybodyOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    registry: RegistryOption = None,
) -> None:
    """List adapters: the catalogue's, the Hub's, a shared folder's.

    Metrics are those on held-out rows. A narrow terminal leaves out columns; a pipe, --csv and --json have all of them.
    """
    if remote is not None or everybody:
        print_remote(context)
        return
    one_form(as_json, as_csv)
    catalogue = open_registry(registry)
    wanted = Filter(
        domain=domain, task=task, base=base_to_find(catalogue, base), method=method, strategy=strategy, tag=tag,
        alias=alias, text=search, where=tuple(where or ()), ancestor=ancestor,
    )  # fmt: skip
    found = catalogue.search(wanted, sort="name" if sort is None else sort, reverse=reverse, limit=limit or None)
    damaged: list[Unreadable] = []
    if as_json:
        print_json_list(map(version_json, readable(found.each(), damaged)))
    elif as_csv:
        print_csv(
            map(_csv_row, readable(found.each(), damaged)), [*_CSV_COLUMNS, *sorted(map(_csv_metric, found.metrics()))]
        )
    elif found:
        columns = dict.fromkeys([sort or "name", *(parse_comparison(text).name for text in wanted.where)])
        print_table([_row(one, list(columns)) for one in readable(found.each(), damaged)], expendable=_EXPENDABLE)
    elif not catalogue.path.exists():
        print_line(no_registry(catalogue.path))
    else:
        filled = catalogue.search(Filter(), limit=1).total
        print_line(
            f"Nothing in {catalogue.path} fits; `{suggested('lorary domains', catalogue.path)}` shows what there is."
            if filled
            else f"{catalogue.path} is empty."
        )
    if more := found.total - len(found):
        told = f"{more:,} more fit{'s' if more == 1 else ''}; narrow it down, or --limit 0 shows all"
        print_note(told, aside=as_json or as_csv)
    tell_damaged(damaged)


def _row(version: Version, asked: list[str]) -> dict[str, object]:
    """The row of a table: the metrics and numbers that it is sorted or filtered by, else the headline metric."""
    test = version.metrics.get("test", {})
    numbers = {"rank": version.rank, "parameters": version.parameters, "size": version.size_bytes}
    best = headline(test)
    named = {name: short_number(test[name]) if name in test else "" for name in asked if name not in _COLUMNS}
    return {
        "name": version.name,
        "version": version.number,
        "domain": version.domain,
        "task": version.task,
        "method": version.method,
        **({"strategy": version.strategy} if "strategy" in asked else {}),
        "base": (version.base_id or "").rstrip("/").rpartition("/")[2],
        **{name: "" if numbers[name] is None else f"{numbers[name]:,}" for name in asked if name in numbers},
        **(named or {"metric": f"{best[0]} {short_number(best[1])}" if best else ""}),
        "aliases": ", ".join(version.aliases),
        "created": version.created_at[:10],
    }


_COLUMNS = {"name", "domain", "task", "created", "base", "method", "strategy", *NUMBERS}

_CSV_COLUMNS = (
    "reference", "name", "version", "domain", "task", "base", "base_fingerprint", "method", "quantization", "strategy",
    "rank", "parameters", "size_bytes", "created_at", "aliases", "tags", "parents", "digest",
)  # fmt: skip


def _csv_row(version: Version) -> dict[str, object]:
    renamed = {"version": version.number, "base": version.base_id}
    lists = {name: " ".join(getattr(version, name)) for name in ("aliases", "tags", "parents")}
    row = {name: renamed.get(name, lists.get(name, getattr(version, name, None))) for name in _CSV_COLUMNS}
    return {**row, **{_csv_metric(name): value for name, value in version.metrics.get("test", {}).items()}}


def _csv_metric(name: str) -> str:
    # Nobody keeps a trainer from calling a metric as a column is.
    return f"test/{name}" if name in _CSV_COLUMNS else name
