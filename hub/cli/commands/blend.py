"""``lorary blend``: a weighted sum of adapters becomes a version in the catalogue, or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorary.hub.cli.open_base import open_backbone
from lorary.hub.cli.options import JsonOption, RegistryOption, given_path, open_registry
from lorary.hub.cli.output import print_json, print_line, print_note, version_json
from lorary.hub.errors import UsageError

if TYPE_CHECKING:
    from lorary.adapters.blending.parts import Part
    from lorary.hub.registry import Registry

EXAMPLES = (
    "lorary blend legal=0.7 tone=0.3 --name legal-tone",
    "lorary blend legal@prod=1 ./runs/tone=-0.5 --name less-tone --combination ties --density 0.3 --domain legal",
    "lorary blend legal=0.7 tone=0.3 --name legal-tone --head tone --base org/base --output ./legal-tone",
)


def command(
    parts: Annotated[
        list[str],
        typer.Argument(
            metavar="REF=WEIGHT", help="Adapters and their weights; one that begins with a - goes after a --."
        ),
    ],
    name: Annotated[str, typer.Option(help="The blend's name.")],
    combination: Annotated[
        str, typer.Option(help="cat (the exact sum), svd, linear, ties, dare_linear, dare_ties, magnitude_prune, ...")
    ] = "cat",
    density: Annotated[float | None, typer.Option(help="The share of values that a pruning kind keeps.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of the result, for the kinds that end in svd.")] = None,
    majority_sign: Annotated[str | None, typer.Option(help="For the TIES kinds: total or frequency.")] = None,
    seed: Annotated[int | None, typer.Option(help="For the DARE kinds.")] = None,
    head: Annotated[
        str | None, typer.Option(metavar="REF", help="Whose head, labels and prompt to take; or average.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Its subject matter; default the adapters' own.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="DIR", help="A new folder to write, instead of the catalogue."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Also load it on this base, to prove that it has an effect.")] = None,
    quantization: Annotated[str, typer.Option(help="Of that base: none, nf4, fp4 or int8.")] = "none",
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Combine adapters of one base into a new one, by weight.

    The base isn't needed: what can only be asked of it is asked when the blend is loaded, or with --base at once.
    """
    weights = dict(map(_weight, parts))
    if len(weights) < len(parts):
        raise UsageError("an adapter stands twice among the parts; add its weights up")
    catalogue = open_registry(registry)
    from lorary.adapters.blending.blend import kept_blend, register_blend
    from lorary.adapters.blending.combination import Combination

    how = Combination(combination, density, rank, majority_sign, seed)
    read = _read(weights, catalogue)
    with kept_blend(read, how, name, output, head=head, domain=domain) as blend:
        source = blend.source
        if base is not None:
            backbone = open_backbone(source.checkpoint, base, catalogue, quantization=quantization)
            for note in backbone.load(source.checkpoint, name).notes:
                print_note(f"note: {note}", aside=True)
        version = register_blend(source.checkpoint, read, catalogue, name) if output is None else None
        sum_of = " + ".join(f"{part.weight:g} {part.reference or part.name}" for part in read)
        if as_json:
            here = {"folder": source.reference, "digest": source.checkpoint.digest}
            print_json(version_json(version) if version else here)
        elif version:
            print_line(f"{version.reference} is in the catalogue ({version.domain}, {version.task}): {sum_of}")
        else:
            print_line(f"{source.reference}: {sum_of}")


def _weight(text: str) -> tuple[str, float]:
    reference, _, number = text.rpartition("=")
    try:
        if reference:
            return reference, float(number)
    except ValueError:
        pass
    raise UsageError(f"{text!r}: expected an adapter and its weight, as in legal=0.7")


def _read(weights: dict[str, float], catalogue: Registry) -> Sequence[Part]:
    from lorary.adapters.backbone.sources import find_checkpoint
    from lorary.adapters.blending.parts import read_part

    sources = {name: find_checkpoint(name, catalogue) for name in weights}
    return [
        read_part(name, weights[name], source.name, source.checkpoint, catalogue) for name, source in sources.items()
    ]
