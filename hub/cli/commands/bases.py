"""``lorary bases``: the base models that were pretrained here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lorary.hub.cli.damaged import readable, tell_damaged
from lorary.hub.cli.options import JsonOption, RegistryOption, open_registry
from lorary.hub.cli.output import print_fields, print_json, print_line, print_metrics, print_table, short_number, size
from lorary.hub.errors import UsageError
from lorary.hub.metrics import SPLITS
from lorary.hub.registry_path import suggested
from lorary.hub.values import PretrainedBase, Unreadable

EXAMPLES = ("lorary bases", "lorary bases herbal-bert", "lorary bases --remove herbal-bert")


def command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one.", show_default=False)] = None,
    remove: Annotated[str | None, typer.Option(metavar="NAME", help="Remove a base and its files.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Remove it even if adapters need it.")] = False,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """List, show or remove the bases that `lorary pretrain` made.

    A recipe takes one as its base by its name.
    """
    catalogue = open_registry(registry)
    if remove is not None:
        if name is not None:
            raise UsageError("expected a name to show or --remove NAME, found both")
        gone = catalogue.bases.remove(remove, force=force)
        if isinstance(gone, Unreadable):
            if as_json:
                print_json({"name": gone.reference, "damaged": gone.problem})
            else:
                collecting = suggested("lorary gc", catalogue.path)
                print_line(
                    f"{gone.reference} was removed. Its row was damaged; `{collecting}` deletes what it may leave."
                )
        elif as_json:
            print_json(base_json(gone))
        else:
            print_line(f"{gone.name} was removed.")
        return
    if name is not None:
        base = catalogue.bases.get(name)
        if as_json:
            print_json(base_json(base))
        else:
            _show(base)
        return
    damaged: list[Unreadable] = []
    bases = list(readable(catalogue.bases.each(), damaged))
    if as_json:
        print_json([base_json(base) for base in bases])
    elif bases:
        print_table([_row(base) for base in bases], expendable=("created", "vocabulary"))
    elif not damaged:
        print_line(f"No base was pretrained in {catalogue.path} yet; `lorary pretrain` makes one.")
    tell_damaged(f"base {one.reference!r}: {one.problem}" for one in damaged)


def base_json(base: PretrainedBase) -> dict[str, Any]:
    """A base as JSON values."""
    return {
        "name": base.name,
        "architecture": base.architecture,
        "parameters": base.parameters,
        "fingerprint": base.fingerprint,
        "digest": base.digest,
        "created_at": base.created_at,
        "metrics": {split: dict(values) for split, values in base.metrics.items()},
        "files": {name: entry.sha256 for name, entry in base.files.items()},
        "folder": str(base.folder),
        "provenance": dict(base.provenance),
    }


def _row(base: PretrainedBase) -> dict[str, object]:
    test = base.metrics.get("test", {})
    return {
        "name": base.name,
        "architecture": base.architecture,
        "parameters": f"{base.parameters:,}",
        "vocabulary": base.provenance.get("vocabulary", ""),
        "perplexity": short_number(test["perplexity"]) if "perplexity" in test else "",
        "created": base.created_at[:10],
    }


def _show(base: PretrainedBase) -> None:
    data = base.provenance.get("data")
    train = data.get("train") if isinstance(data, dict) else None
    corpus = train if isinstance(train, dict) else {}  # it may have come with a stranger's registry
    print_fields(
        {
            "base": base.name,
            "architecture": base.architecture,
            "parameters": f"{base.parameters:,}",
            "vocabulary": base.provenance.get("vocabulary"),
            "corpus": corpus.get("name"),
            "corpus sha256": corpus.get("sha256"),
            "created": base.created_at,
            "fingerprint": base.fingerprint,
            "digest": base.digest,
            "folder": base.folder,
        }
    )
    print_line("")
    print_base_metrics(base)
    print_line("")
    print_table([{"file": n, "size": size(entry.size), "sha256": entry.sha256} for n, entry in base.files.items()])


def print_base_metrics(base: PretrainedBase) -> None:
    """Print a base's figures beside the unigram baseline's."""
    print_metrics(base.metrics, {**SPLITS, "test": "pretrained"})
