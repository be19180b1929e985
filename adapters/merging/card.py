"""The README of a merged model: what it was made from, and how near it is to that."""

from __future__ import annotations

import json
from pathlib import Path

from lorary.adapters.merging.check import Merged
from lorary.adapters.values import MergedModel
from lorary.hub.manifest import BaseIdentity


def write_card(folder: Path, merged: MergedModel, adapter: Merged, base: BaseIdentity, quantization: str) -> None:
    """Write ``README.md`` with the Hub's metadata (https://huggingface.co/docs/hub/model-cards) and the provenance."""
    on_hub = not Path(base.id).expanduser().is_dir()  # a path of this machine is of no use to a reader
    metadata = {
        "base_model": base.id if on_hub else None,
        "library_name": "transformers",
        "pipeline_tag": adapter.task,
        "tags": ["lorary", "merged"],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in metadata.items() if value is not None]
    weights = "" if quantization == "none" else f", dequantized from {quantization}"
    text = (
        f"The adapter `{merged.adapter}` (digest {merged.digest}) merged into the weights of "
        f"{f'`{base.id}`' if on_hub else 'its base'} (fingerprint {base.fingerprint or 'unknown'}{weights}), "
        f"in {merged.dtype}, by lorary. Reloaded, its logits differ from the adapter's by at most "
        f"{merged.difference:.1g} (relative to 1 + the row's largest)."
    )
    template = adapter.manifest.prompt.template if adapter.manifest and adapter.manifest.prompt else None
    if template:
        text += f"\n\nPrompts were put before it as `{template}`."
    text += "".join(f"\n\nNote: {note}." for note in merged.notes)
    (folder / "README.md").write_text(
        "\n".join(["---", *lines, "---", "", f"# {merged.adapter}", "", text, ""]), encoding="utf-8"
    )
