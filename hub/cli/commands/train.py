"""``lorary train``: a recipe, or flags alone, becomes a checked adapter in the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lorary.hub.cli.experiments import ablate_recipe, measure_base, print_repeated
from lorary.hub.cli.next_commands import after_training, print_next
from lorary.hub.cli.options import (
    BaseOption,
    DataOption,
    DeviceMapOption,
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
from lorary.hub.cli.output import print_json, print_line, print_metrics, print_table, size, version_json
from lorary.hub.cli.several_recipes import train_each
from lorary.hub.errors import UsageError
from lorary.hub.registry import Registry
from lorary.hub.values import Version

EXAMPLES = (
    "lorary train examples/recipes/text-classification.yaml",
    "lorary train recipe.yaml --set training.epochs=3 --set lora.rank=16",
    "lorary train tone.yaml spam.yaml legal.yaml",
    "lorary train recipe.yaml --strategy intermediate --from legal-corpus@2",
    "lorary train runs/tone-20261124-120000 --resume",
    "lorary train recipe.yaml --seeds 5",
    "lorary train recipe.yaml --strategy direct",
    "lorary train recipe.yaml --ablate --from legal-corpus@2",
    "lorary train runs/tone-20261124-120000 --ablate --resume",
    "lorary train --name tone --domain finance --task text-classification --base org/base --data train.jsonl",
)


def command(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=given_path,
            metavar="RECIPE.yaml|RUN",
            help="The settings of each run; with --resume also a run's folder.",
        ),
    ] = None,
    resume: ResumeOption = False,
    set_: SetOption = None,
    base: BaseOption = None,
    data: DataOption = None,
    test: Annotated[str | None, typer.Option(help="Held-out rows; without them a fifth is split off.")] = None,
    task: Annotated[str | None, typer.Option(help="text-classification, token-classification, ...")] = None,
    domain: Annotated[str | None, typer.Option(help="The subject matter, such as finance.")] = None,
    name: Annotated[str | None, typer.Option(help="The adapter's name.")] = None,
    method: Annotated[
        str | None, typer.Option(help="lora (default), qlora, rslora, dora, adalora, or another PEFT method.")
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="Of the base: none, nf4, fp4 or int8; default none, nf4 with qlora.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="direct, fine-tune (default), continual (default of fill-mask) or intermediate.")
    ] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="REF", help="The adapter to start from.")] = None,
    rank: Annotated[int | None, typer.Option(help="The adapter's rank; default 8 or 16, by task.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How often to go through the rows; default by task.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The largest step size, such as 2e-4; default by task.")
    ] = None,
    seed: SeedOption = None,
    seeds: Annotated[int | None, typer.Option(help="So many runs, one seed each; the best is kept.")] = None,
    folds: Annotated[int | None, typer.Option(help="Cross-validate in so many parts, then train on all rows.")] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Compare: the base as it is, the task alone, domain then task.")
    ] = False,
    corpus: Annotated[
        str | None, typer.Option(help="With --ablate: the domain's text, where the recipe names no domain adapter.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="The run's folder; default runs/NAME-TIME.")] = None,
    alias: Annotated[str | None, typer.Option(help="Let this alias mean the new version.")] = None,
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Train an adapter, check it, and put it into the catalogue.

    Flags win over the recipe, and --set over both. Everything is checked before the base is loaded, and every mistake
    is listed at once. Of several recipes all are checked first; those that follow one another on the same base share it
    in memory, and one that fails doesn't keep the others from running.
    """
    flags: dict[str, Any] = {
        "base": base, "data.train": data, "data.test": test, "task": task, "domain": domain, "name": name,
        "method": method, "quantization": quantization, "lora.rank": rank, "training.epochs": epochs,
        "training.learning_rate": learning_rate, "training.seed": seed, "output": output, "alias": alias,
        "device": device, "device_map": device_map, "strategy": strategy, "from": from_,
        "training.seeds": seeds, "training.folds": folds,
    }  # fmt: skip
    recipe = recipes[0] if recipes else None
    given = {key: value for key, value in flags.items() if value is not None}
    if recipe is None and not given and not set_:
        raise UsageError(f"expected a recipe or flags; for example: {EXAMPLES[0]}")
    catalogue = open_registry(registry)
    if len(recipes or ()) > 1:
        if resume or ablate:
            raise UsageError(f"--{'resume' if resume else 'ablate'} takes one recipe, found {len(recipes or ())}")
        train_each(recipes or [], set_ or (), given, catalogue, as_json)
        return
    run = run_folder(recipe, resume, bool(given or set_))
    from lorary.training.recipe import Recipe

    if run:
        from lorary.training.experiments import ablation
        from lorary.training.resume import recipe_of, registered_run

        if not ablate and (finished := registered_run(run, catalogue)):
            _print_version(finished, catalogue, False, run, as_json)
            return
        settings = recipe_of(run, Recipe, catalogue, ablation.COMMAND if ablate else "train")
    else:
        settings = Recipe.load(recipe, set_ or (), given) if recipe else Recipe.from_flags(given, set_ or ())
    if corpus is not None and not ablate:
        raise UsageError(
            "--corpus is the text of --ablate's domain stage; to train on it alone, use strategy: continual"
        )
    if ablate:
        ablate_recipe(settings, catalogue, corpus, seeds, as_json, run or resume)
        return
    if settings.strategy == "direct":
        measure_base(settings, catalogue, as_json)
        return
    from lorary.training.progress import BarReporter
    from lorary.training.run import train

    known = catalogue.numbers(settings.name)
    with BarReporter(settings.name) as reporter:
        version = train(settings, catalogue, reporter, resume=run or resume)
    _print_version(version, catalogue, version.number not in known, reporter.folder, as_json)


def _print_version(version: Version, catalogue: Registry, new: bool, folder: Path | None, as_json: bool) -> None:
    if as_json:
        print_json({**version_json(version), "folder": str(folder)})
        return
    provenance = version.manifest.provenance if version.manifest else {}
    print_table(
        [
            {
                "adapter": version.reference,
                "domain": version.domain,
                "task": version.task,
                "method": version.method + (f" r{version.rank}" if version.rank else ""),
                "trainable": f"{version.parameters:,}",
                "steps": provenance.get("steps", ""),
                "seconds": f"{provenance.get('seconds', 0.0):.1f}",
                "peak memory": size(int(provenance.get("peak_memory_bytes", 0))),
            }
        ]
    )
    print_line("")
    print_metrics(version.metrics)
    print_line("")
    for kind in ("seeds", "folds"):
        if kind in provenance:
            print_repeated(kind, provenance[kind])
    if not new:
        print_line(f"The same adapter was in the catalogue already, as {version.reference}.")
    print_line(f"Files: {folder}")
    print_next(after_training(version, catalogue), catalogue.path)
