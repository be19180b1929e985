"""``lorary eval``: adapters measured on rows with known answers, side by side."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorary.hub.cli.open_base import told_whose
from lorary.hub.cli.options import (
    DeviceMapOption,
    DeviceOption,
    JsonOption,
    RegistryOption,
    demand_distinct,
    given_path,
    open_registry,
)
from lorary.hub.cli.output import print_json, print_line, print_matrix, print_note, short_number
from lorary.hub.errors import UsageError
from lorary.hub.metrics import SPLITS

if TYPE_CHECKING:
    from lorary.training.evaluation.evaluate import Evaluation

EXAMPLES = (
    "lorary eval finance-tone --data new-headlines.jsonl",
    "lorary eval finance-tone@prod finance-tone@candidate --data new-headlines.jsonl",
    "lorary eval ./runs/tone/finance-tone --data rows.csv --set data.columns.text=headline",
    "lorary eval contracts-qa --data leases.jsonl --answers answers.jsonl",
)


def command(
    references: Annotated[
        list[str],
        typer.Argument(metavar="REF", help="name, name@3, name@alias, user/repo[@revision], or a folder; of one task."),
    ],
    data: Annotated[str, typer.Option(help="Rows with their answers: JSONL, CSV, TSV, Parquet, text or a dataset id.")],
    base: Annotated[str | None, typer.Option(help="The base model; default the one that each adapter names.")] = None,
    quantization: Annotated[
        str | None, typer.Option(help="Of the base: none, nf4, fp4 or int8; default as each adapter was trained.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A recipe's setting over what the adapters say; repeatable."),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="FILE.jsonl", help="Write what each adapter made of each row there."),
    ] = None,
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Measure adapters on rows with known answers.

    Columns, labels, lengths and prompts are those of each adapter's training. Of several adapters the first is what the
    others are held against, by paired bootstrap over the rows. Nothing is trained or registered.
    """
    demand_distinct(references)
    if answers is not None:
        _check_place(answers, data)
    catalogue = open_registry(registry)
    from lorary.training.evaluation.evaluate import evaluate
    from lorary.training.progress import BarReporter

    flags = {"base": base, "quantization": quantization, "device": device, "device_map": device_map}
    settings = {key: value for key, value in flags.items() if value is not None}
    with told_whose(base), BarReporter(references[0]) as reporter:
        found = evaluate(references, data, catalogue, settings=settings, overrides=set_ or (), progress=reporter)
    # Before the answers, which may find the disk full: what took an hour to measure isn't lost with them.
    if as_json:
        print_json(_told(data, found))
    else:
        _show(found)
    if answers is not None:
        _write(answers, found)
        print_note(f"Answers: {answers}", aside=as_json)


def _check_place(answers: Path, data: str) -> None:
    """Raise UsageError where answers can't be written, or would take the place of the rows."""
    if not answers.parent.is_dir():
        raise UsageError(f"--answers {answers}: there is no folder {answers.parent}")
    if answers.is_dir():
        raise UsageError(f"--answers {answers}: it is a folder; name a file in it")
    if answers.exists() and answers.resolve() == Path(data).expanduser().resolve():
        raise UsageError(f"--answers {answers}: these are the rows of --data; name another file")


def _show(found: Evaluation) -> None:
    columns = {one.reference: one.metrics for one in found.adapters}
    titles = {**SPLITS, "mean": "mean of these rows"}
    columns |= {titles.get(split, split): metrics for split, metrics in found.baselines.items()}
    names = dict.fromkeys([found.metric, *(name for metrics in columns.values() for name in metrics)])
    print_matrix(
        [
            {
                "metric": name,
                **{title: short_number(metrics[name]) if name in metrics else "" for title, metrics in columns.items()},
            }
            for name in names
        ]
    )
    print_line("")
    print_line(f"Measured on {found.rows} rows; nothing was trained or registered.")
    first = found.adapters[0].reference
    for one, difference in zip(found.adapters[1:], found.differences, strict=True):
        if difference is None:
            print_line(
                f"{one.reference} and {first} aren't held against each other: what they are measured on isn't the same "
                "(rows, labels, or the tokens of a loss)."
            )
            continue
        print_line(
            f"{one.reference} against {first}: {difference.metric} {difference.value:+.4f} ({difference.low:+.4f} to "
            f"{difference.high:+.4f} in 95% of resamples): {difference.verdict}"
        )


def _told(data: str, found: Evaluation) -> dict[str, Any]:
    differences = [None, *found.differences]
    return {
        "data": data,
        "task": found.task,
        "rows": found.rows,
        "metric": found.metric,
        "adapters": [
            {
                "reference": one.reference,
                "digest": one.digest,
                "metrics": one.metrics,
                "against_first": None if difference is None else asdict(difference) | {"verdict": difference.verdict},
            }
            for one, difference in zip(found.adapters, differences, strict=True)
        ],
        "baselines": found.baselines,
    }


def _write(place: Path, found: Evaluation) -> None:
    """A line for each row and adapter."""
    try:
        with place.open("w", encoding="utf-8") as file:
            for one in found.adapters:
                for row, answer in zip(one.places, one.answers, strict=True):
                    line = {"adapter": one.reference, "row": row, **asdict(answer)}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UsageError(f"--answers {place}: can't be written ({error.strerror})") from error
