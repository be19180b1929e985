"""``lorary show``: all that the catalogue knows about one version."""

from __future__ import annotations

from typing import Any

from lorary.hub.cli.options import JsonOption, ReferenceArgument, RegistryOption, open_registry
from lorary.hub.cli.output import print_fields, print_json, print_line, print_table, short_number, size, version_json
from lorary.hub.values import Version

EXAMPLES = ("lorary show finance-tone", "lorary show finance-tone@prod --json")

# The splits' names for people; the trained adapter first, then what it is to be compared with.
_SPLITS = {"test": "trained", "untrained": "untrained", "majority": "majority class"}


def command(reference: ReferenceArgument, as_json: JsonOption = False, registry: RegistryOption = None) -> None:
    """Show one version: details, metrics, files, aliases and lineage."""
    catalogue = open_registry(registry)
    version = catalogue.resolve(reference)
    everything = catalogue.versions()
    children = [other.reference for other in everything if version.reference in other.parents]
    if as_json:
        print_json({**version_json(version), "children": children})
        return
    siblings = [other.number for other in everything if other.name == version.name]
    print_fields(_details(version, siblings, children))
    if version.metrics:
        print_line("")
        print_table(_metrics(version))
    print_line("")
    files = [{"file": name, "size": size(entry.size), "sha256": entry.sha256} for name, entry in version.files.items()]
    print_table(files, expendable=("sha256",))


def _details(version: Version, siblings: list[int], children: list[str]) -> dict[str, object]:
    manifest = version.manifest
    return {
        "version": f"{version.reference} of {', '.join(map(str, siblings))}",
        "aliases": ", ".join(version.aliases),
        "domain": version.domain,
        "task": version.task,
        "labels": ", ".join(manifest.labels) if manifest and manifest.labels else None,
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


def _blend(told: Any) -> str | None:
    """What a blend was made from, out of a manifest that anybody may have written."""
    parts = told.get("adapters") if isinstance(told, dict) else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return None
    terms = (f"{part.get('weight')} {part.get('reference') or part.get('name')}" for part in parts)
    return f"{told.get('combination')} of {' + '.join(terms)}"


def _metrics(version: Version) -> list[dict[str, object]]:
    splits = [*_SPLITS, *(split for split in version.metrics if split not in _SPLITS)]
    present = [split for split in splits if split in version.metrics]
    names = dict.fromkeys(name for split in present for name in version.metrics[split])
    return [
        {
            "metric": name,
            **{
                _SPLITS.get(split, split): short_number(value)
                if (value := version.metrics[split].get(name)) is not None
                else ""
                for split in present
            },
        }
        for name in names
    ]
