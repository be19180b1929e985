"""``lorary merge``: an adapter and its base become one model that transformers loads by itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lorary.hub.cli.open_base import open_backbone
from lorary.hub.cli.options import DeviceMapOption, DeviceOption, JsonOption, RegistryOption, given_path, open_registry
from lorary.hub.cli.output import print_json, print_line, print_note

EXAMPLES = (
    "lorary merge legal-qa@prod ./legal-model",
    "lorary merge ./runs/tone/finance-tone ./tone-model --base org/base --dtype bfloat16",
)


def command(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="name, name@3, name@alias, user/repo[@revision], or a folder.")
    ],
    folder: Annotated[Path, typer.Argument(parser=given_path, metavar="DIR", help="A new or empty folder.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default what the base is opened in.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model; default the one that the adapter names.")] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            help="none, nf4, fp4 or int8: of the weights to merge into; default those that it was trained on."
        ),
    ] = None,
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Write an adapter merged into its base, as a model of its own.

    An adapter that was trained on quantized weights is merged into those weights, dequantized. The files are loaded
    again and answer as the adapter does, or nothing is kept.
    """
    catalogue = open_registry(registry)
    from lorary.adapters.backbone.sources import find_checkpoint
    from lorary.adapters.base.device import pick_device, pick_dtype
    from lorary.adapters.matching.support import check_supported
    from lorary.hub.files.folders import demand_free

    # All that can be said before the base is loaded, which may mean a long download.
    demand_free(folder.expanduser().absolute())
    pick_dtype(pick_device(device), dtype)
    source = find_checkpoint(reference, catalogue)
    check_supported(source.checkpoint)
    manifest = source.checkpoint.manifest
    trained_on = manifest.numerics.quantization if manifest else "none"
    backbone = open_backbone(
        source.checkpoint,
        base,
        catalogue,
        quantization=quantization or trained_on,
        device=device,
        device_map=device_map,
    )
    loaded = backbone.load(source.checkpoint, source.name)
    merged = backbone.merge(source.name, folder, dtype=dtype)
    for note in dict.fromkeys((*loaded.notes, *merged.notes)):
        print_note(f"note: {note}", aside=True)
    if as_json:
        print_json(asdict(merged))
        return
    print_line(
        f"{merged.folder}: {merged.model_class} in {merged.dtype}; its logits differ from the adapter's by at most "
        f"{merged.difference:.1g}"
    )
