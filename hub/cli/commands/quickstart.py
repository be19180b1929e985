"""``lorary quickstart``: train three adapters, catalogue them, and run all three on one backbone, without a network."""

from __future__ import annotations

import statistics
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorary.hub.base_files import EMBEDDED_BASE
from lorary.hub.cli.options import given_path, open_registry
from lorary.hub.cli.output import print_line, print_table, short_number, size
from lorary.hub.registry_path import suggested

if TYPE_CHECKING:
    from lorary.hub.registry import Registry
    from lorary.hub.values import Version

EXAMPLES = ("lorary quickstart", "lorary quickstart --output /tmp/demo")

RECIPES = ("finance-tone", "email-spam", "biomedical-diseases")
"""The recipes of ``examples/quickstart/`` and the names of the adapters that they make."""

_TEXTS = (
    ("finance-tone", "Orders at the shipyard doubled and the board raised its dividend"),
    ("email-spam", "Your parcel is on hold. Pay the 1.99 customs fee within 24 hours to release it: open the link now"),
    ("biomedical-diseases", "The patient had a history of type 2 diabetes and rheumatoid arthritis , but no fever ."),
    ("finance-tone", "The lender warned that bad loans will wipe out this year's profit"),
    ("email-spam", "Hi Ana, the slides for Thursday are in the shared folder, could you check page 4 before noon?"),
    ("biomedical-diseases", "Mutations in this gene cause cystic fibrosis ."),
)

_HEADLINE_METRIC = {"text-classification": "accuracy", "token-classification": "f1"}
_SWAPS = 50
_NEXT = (
    "lorary list",
    "lorary show finance-tone",
    'lorary run finance-tone "Shares fell after the profit warning."',
)


def command(
    output: Annotated[
        Path,
        typer.Option(
            parser=given_path, metavar="FOLDER", help="Where the registry and the runs go; an earlier demo's are kept."
        ),
    ] = Path("demo"),
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Stop each training early: quicker, and the scores say nothing.")
    ] = None,
) -> None:
    """Train three example adapters and run them on one backbone.

    They are trained on the example data and put into a registry of the demo's own. Uses
    sentence-transformers/all-MiniLM-L6-v2 from the local cache, the Hub or the `demo` extra. Takes two or three
    minutes on two cores.
    """
    started = time.perf_counter()
    registry = open_registry(output / "registry.db")
    shorter = [] if max_steps is None else [f"training.max_steps={max_steps}"]
    versions = [_train(name, output, registry, shorter) for name in RECIPES]
    print_line("")
    print_table([_row(version, seconds) for version, seconds in versions])
    print_line("")
    _share_one_backbone([version for version, _ in versions], registry)
    print_line("")
    print_line(f"Done in {time.perf_counter() - started:.0f} s. Try next:")
    for command in _NEXT:
        print_line(f"  {suggested(command, registry.path)}")


def _train(name: str, output: Path, registry: Registry, shorter: list[str]) -> tuple[Version, float]:
    from lorary.training.progress import BarReporter
    from lorary.training.recipe import Recipe
    from lorary.training.run import train

    examples = files("lorary.examples")
    run = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    overrides = [
        f"data.train={examples / name / 'train.jsonl'}",
        f"data.test={examples / name / 'test.jsonl'}",
        f"output={output / 'runs' / run}",
        *shorter,
    ]
    recipe = Recipe.load(Path(str(examples / "quickstart" / f"{name}.yaml")), overrides)
    started = time.perf_counter()
    with BarReporter(name) as reporter:
        version = train(recipe, registry, reporter)
    return version, time.perf_counter() - started


def _row(version: Version, seconds: float) -> dict[str, object]:
    metric = _HEADLINE_METRIC[version.task]
    shown = {split: short_number(values[metric]) for split, values in version.metrics.items() if metric in values}
    return {
        "adapter": version.reference,
        "domain": version.domain,
        "task": version.task,
        "method": version.method,
        "trainable": f"{version.parameters:,}",
        "metric": metric,
        "held-out": shown["test"],
        "untrained": shown.get("untrained", ""),
        "majority": shown.get("majority", ""),
        "seconds": f"{seconds:.0f}",
    }


def _share_one_backbone(versions: list[Version], registry: Registry) -> None:
    from lorary.adapters import Backbone

    backbone = Backbone.from_pretrained(EMBEDDED_BASE, registry=registry)
    for version in versions:
        for note in backbone.load(version.reference).notes:
            print_line(f"note: {version.reference}: {note}")
    print_line(f"One backbone ({EMBEDDED_BASE}), three adapters, one mixed batch:")
    names = [name for name, _ in _TEXTS]
    texts = [text for _, text in _TEXTS]
    answers = _mixed(backbone, texts, names)
    print_table([{"adapter": n, "answer": a, "text": t} for n, a, t in zip(names, answers, texts, strict=True)])
    print_line("")
    seconds = _time_swaps(backbone, versions)
    stats = backbone.stats()
    copies = len(versions) * stats.backbone_bytes
    shared = stats.backbone_bytes + len(versions) * stats.slot_bytes
    copy, whole = statistics.median(stats.swap_seconds[-_SWAPS:]) * 1000, statistics.median(seconds) * 1000
    # A GPU copies while the host goes on, so all that was timed there is the queueing.
    copying = "queue the copy of" if backbone.device.type == "cuda" else "copy"
    print_line(
        f"Swap: {copy:.2f} ms to {copying} an adapter into its slot, {whole:.0f} ms with reading, checking and "
        f"proving it first (medians of {_SWAPS} swaps under one live name)."
    )
    print_line(
        f"Memory: {size(shared)} for one backbone and {len(versions)} adapters, {size(copies)} for {len(versions)} "
        f"models: {size(copies - shared)} saved; each further adapter takes {size(stats.slot_bytes)}."
    )


def _mixed(backbone: Any, texts: list[str], names: list[str]) -> list[str]:
    answers = []
    for text, answer in zip(texts, backbone.predict(texts, names), strict=True):
        if isinstance(answer, dict):
            answers.append(f"{answer['label']} ({answer['score']:.2f})")
        else:
            answers.append(", ".join(text[start:end] for start, end in _spans(answer)) or "nothing found")
    return answers


def _spans(entities: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Where the mentions are, from the tagged pieces of words."""
    spans: list[tuple[int, int]] = []
    for entity in entities:
        if spans and not (entity["entity"].startswith("B-") and entity["start"] > spans[-1][1]):
            spans[-1] = (spans[-1][0], entity["end"])
        else:
            spans.append((entity["start"], entity["end"]))
    return spans


def _time_swaps(backbone: Any, versions: list[Version]) -> list[float]:
    """Let one name stand for the three versions in turn; the seconds of each whole swap.

    No other name may keep a version in its slot: it would be there already, and nothing read or copied.
    """
    for version in versions:
        backbone.unload(version.name)
    backbone.load(versions[0].reference, "live")
    seconds = []
    for index in range(_SWAPS):
        started = time.perf_counter()
        backbone.swap("live", versions[(index + 1) % len(versions)].reference)
        seconds.append(time.perf_counter() - started)
    backbone.unload("live")
    return seconds
