"""``lorary pretrain``: a small base model and its tokenizer, from a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lorary.hub.cli.commands.bases import base_json, print_base_metrics
from lorary.hub.cli.next_commands import print_next
from lorary.hub.cli.options import (
    DeviceOption,
    JsonOption,
    RegistryOption,
    ResumeOption,
    SeedOption,
    SetOption,
    given_path,
    open_registry,
    run_folder,
)
from lorary.hub.cli.output import print_json, print_line, print_table, size
from lorary.hub.errors import UsageError
from lorary.hub.registry import Registry
from lorary.hub.values import PretrainedBase

EXAMPLES = (
    "lorary pretrain examples/recipes/pretrain.yaml",
    "lorary pretrain --name herbal-bert --architecture bert --preset small --data texts/",
    "lorary pretrain recipe.yaml --set training.epochs=3 --set tokenizer.vocab_size=4000",
    "lorary pretrain runs/herbal-bert-20261124-120000 --resume",
)


def command(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            parser=given_path,
            metavar="RECIPE.yaml|RUN",
            help="The settings of the run; with --resume also a run's folder.",
        ),
    ] = None,
    resume: ResumeOption = False,
    set_: SetOption = None,
    name: Annotated[str | None, typer.Option(help="The base's name; recipes take it as their base.")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="llama (generates text), bert (reads it) or t5 (rewrites it).")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Sizes: tiny, small or base.")] = None,
    data: Annotated[
        str | None, typer.Option(help="The corpus: a text file, a folder of them, or rows of text.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="Held-out text; without it a tenth of the documents.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How often to go through the corpus.")] = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    output: Annotated[
        str | None, typer.Option(help="The run's folder until it is finished; default runs/NAME-TIME.")
    ] = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Train a small base model and its tokenizer from scratch.

    For a new language, or texts of your own. The base comes into the catalogue (see `lorary bases`), and recipes
    take it by its name: `base: NAME`.
    """
    flags: dict[str, Any] = {
        "name": name, "architecture": architecture, "preset": preset, "data.train": data, "data.test": test,
        "training.epochs": epochs, "training.seed": seed, "device": device, "output": output,
    }  # fmt: skip
    given = {key: value for key, value in flags.items() if value is not None}
    if recipe is None and not given and not set_:
        raise UsageError(f"expected a recipe or flags; for example: {EXAMPLES[1]}")
    catalogue = open_registry(registry)
    run = run_folder(recipe, resume, bool(given or set_))
    from lorary.training.pretraining import PretrainRecipe

    if run:
        from lorary.training.resume import recipe_of

        settings = recipe_of(run, PretrainRecipe, catalogue, "pretrain")
    elif recipe:
        settings = PretrainRecipe.load(recipe, set_ or (), given)
    else:
        settings = PretrainRecipe.from_flags(given, set_ or ())
    from lorary.training.pretraining.run import pretrain
    from lorary.training.progress import BarReporter

    with BarReporter(settings.name) as reporter:
        base = pretrain(settings, catalogue, reporter, resume=run or resume)
    if as_json:
        print_json(base_json(base))
    else:
        _print_result(base, catalogue)


def _print_result(base: PretrainedBase, catalogue: Registry) -> None:
    provenance = base.provenance
    print_table(
        [
            {
                "base": base.name,
                "architecture": base.architecture,
                "parameters": f"{base.parameters:,}",
                "vocabulary": f"{provenance['vocabulary']:,}",
                "tokens": f"{provenance['tokens']['train']:,}",
                "steps": provenance["steps"],
                "seconds": f"{provenance['seconds']:.1f}",
                "peak memory": size(int(provenance["peak_memory_bytes"])),
            }
        ]
    )
    print_line("")
    print_base_metrics(base)
    print_line("")
    task = {"llama": "text-generation", "t5": "summarization"}.get(base.architecture, "text-classification")
    print_line(f"Files: {base.folder}")
    train = f"lorary train --base {base.name} --task {task} --name NAME --domain DOMAIN --data FILE"
    print_next([train], catalogue.path)
