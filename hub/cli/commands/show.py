"""``lorary show``: all that the catalogue knows about one version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lorary.hub.checkpoint import ORIGIN_NAME, REPORT_DATA, Checkpoint
from lorary.hub.cli.damaged import readable
from lorary.hub.cli.lineage import draw_lineage, lineage_json
from lorary.hub.cli.options import JsonOption, ReferenceArgument, RegistryOption, given_path, open_registry
from lorary.hub.cli.output import print_fields, print_json, print_line, print_metrics, print_table, size, version_json
from lorary.hub.cli.provenance import came_to_be
from lorary.hub.errors import LoraryError, UsageError
from lorary.hub.manifest import Filling
from lorary.hub.registry import Registry
from lorary.hub.tables.links import links
from lorary.hub.values import Unreadable, Version

EXAMPLES = (
    "lorary show finance-tone",
    "lorary show finance-tone@prod --json",
    "lorary show finance-tone --report",
    "lorary show finance-tone --card",
)

_LISTED = 20  # numbers of versions that are told one by one


def command(
    reference: ReferenceArgument,
    report: Annotated[
        bool, typer.Option("--report", help="Open the run's report: curves, mistakes, the worst rows.")
    ] = False,
    card: Annotated[bool, typer.Option("--card", help="Print the model card that goes with it to the Hub.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="FILE.html", help="Write the report there, and don't open it."),
    ] = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Show one version: details, metrics, lineage, card or report."""
    catalogue = open_registry(registry)
    version = catalogue.resolve(reference)
    if card:
        from lorary.hub.card import make_card

        for line in make_card(version, catalogue.checkpoint(version)).splitlines():
            print_line(line)
        return
    if report or output:
        _show_report(catalogue.checkpoint(version), output)
        return
    damaged: list[Unreadable] = []
    family = list(readable(catalogue.relatives(version), damaged))
    unreadable = [one.reference for one in damaged]
    children = [other.reference for other in family if version.reference in other.parents]
    remotes = {
        link.remote: link.commit for link in links(catalogue.path, version.name) if link.number == version.number
    }
    if as_json:
        lineage = lineage_json(version, family, unreadable)
        told = dict(_told(catalogue, version))
        print_json(
            {**version_json(version), "children": children, "lineage": lineage, "remotes": remotes, "told": told}
        )
        return
    print_fields(
        {
            **_details(version, catalogue.numbers(version.name), children),
            "remotes": ", ".join(map(_place, remotes.items())),
        }
    )
    if version.metrics:
        print_line("")
        print_metrics(version.metrics)
    if story := came_to_be(version, _told(catalogue, version)):
        print_line("")
        print_line("how it came to be")
        print_fields(story)
    tree = draw_lineage(version, family, unreadable)
    if tree:
        print_line("")
        print_line("lineage")
        for line in tree:
            print_line(f"  {line}")
    print_line("")
    files = [{"file": name, "size": size(entry.size), "sha256": entry.sha256} for name, entry in version.files.items()]
    print_table(files, expendable=("sha256",))


def _told(catalogue: Registry, version: Version) -> Mapping[str, Any]:
    """What the files of a version without a manifest say of its making; damaged ones say nothing."""
    if version.manifest is not None or ORIGIN_NAME not in version.files:
        return {}
    try:
        return catalogue.checkpoint(version).told
    except LoraryError:
        return {}


def _show_report(checkpoint: Checkpoint, output: Path | None) -> None:
    """The page is made here, from the report's data: a page that came with the files could be anybody's."""
    if REPORT_DATA not in checkpoint.files:
        raise UsageError(f"{checkpoint.source} has no report; `lorary train` writes one, unless report.write is false")
    from lorary.training.report.content import read_report
    from lorary.training.report.page import page

    html = page(read_report(checkpoint.files[REPORT_DATA], checkpoint.source))
    if output is not None:
        try:
            output.expanduser().write_text(html, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{output}: can't be written ({error.strerror or error})") from error
        print_line(str(output))
        return
    import tempfile
    import webbrowser

    with tempfile.NamedTemporaryFile("w", suffix=".html", prefix="lorary-", delete=False, encoding="utf-8") as file:
        file.write(html)
    opened = webbrowser.open(Path(file.name).as_uri())
    print_line(file.name if opened else f"{file.name} (no browser here; --output FILE.html writes it where you like)")


def _place(remote: tuple[str, str]) -> str:
    """Where a version is on a remote: its tag in a folder, the first half of the commit on the Hub."""
    address, commit = remote
    return f"{address}@{commit[:12]}"


def _numbers(siblings: list[int]) -> str:
    few = len(siblings) <= _LISTED
    return ", ".join(map(str, siblings)) if few else f"{len(siblings)} from {siblings[0]} to {siblings[-1]}"


def _details(version: Version, siblings: list[int], children: list[str]) -> dict[str, object]:
    manifest = version.manifest
    return {
        "version": f"{version.reference} of {_numbers(siblings)}",
        "aliases": ", ".join(version.aliases),
        "domain": version.domain,
        "task": version.task,
        "labels": ", ".join(manifest.labels) if manifest and manifest.labels else None,
        "new tokens": ", ".join(manifest.added_tokens) if manifest and manifest.added_tokens else None,
        "gaps": _gaps(manifest.filling) if manifest and manifest.filling else None,
        "tags": ", ".join(version.tags),
        "base": version.base_id,
        "fingerprint": version.base_fingerprint or "unknown (the adapter doesn't carry its base's)",
        "method": version.method,
        "quantization": version.quantization,
        "rank": version.rank,
        "parameters": f"{version.parameters:,}",
        "weights": size(version.size_bytes),
        "strategy": version.strategy,
        "parents": ", ".join(version.parents),
        "blend": _blend(manifest.provenance.get("blend")) if manifest else None,
        "children": ", ".join(children),
        "created": version.created_at,
        "digest": version.digest,
    }


def _gaps(filling: Filling) -> str:
    """How an encoder-decoder's gaps are written in a text."""
    mark = {"sentinels": "<extra_id_0>, <extra_id_1>, ...", "mask": "the mask token"}[filling.gaps]
    return f"{mark}, each for up to {filling.longest} tokens"


def _blend(told: Any) -> str | None:
    """What a blend was made from, out of a manifest that anybody may have written."""
    parts = told.get("adapters") if isinstance(told, dict) else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return None
    terms = (f"{part.get('weight')} {part.get('reference') or part.get('name')}" for part in parts)
    return f"{told.get('combination')} of {' + '.join(terms)}"
