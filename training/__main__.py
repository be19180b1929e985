"""``accelerate launch -m lorary.training RECIPE.yaml``: several processes train one adapter together."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from lorary.hub.errors import InterruptedRunError, LoraryError, TrainingError
from lorary.hub.streams import settle_streams
from lorary.training.recipe import Recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a recipe in this process and those that were launched with it; returns the exit code."""
    settle_streams()
    options = _parser().parse_args(arguments)
    rank = int(os.environ.get("RANK", "0"))
    try:
        _run(options)
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        known = isinstance(error, LoraryError)
        # One process's last words are enough where all have been stopped.
        if rank == 0 or not isinstance(error, InterruptedRunError):
            who = f"process {rank}: " if rank else ""
            what = "" if known else f"unexpected {type(error).__name__}: "
            print(f"lorary: error: {who}{what}{error}", file=sys.stderr)
        return error.exit_code if isinstance(error, LoraryError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    recipe = Recipe.load(options.recipe, options.set)
    from lorary.training.distributed import join, lost_another

    group = join(recipe)
    from lorary.training.run import take_part, train

    if not group.first:
        try:
            take_part(recipe, group)
        except InterruptedRunError:  # all have agreed to stop, and the first says how to go on
            group.until_first_ends()
            raise
        except RuntimeError as error:
            if not lost_another(error):
                raise
            raise TrainingError("another process has ended; its own words, or the launcher's, say why") from error
        return
    from lorary.hub.registry import Registry
    from lorary.hub.registry_path import suggested
    from lorary.training.progress import BarReporter

    registry = Registry(options.registry)
    with BarReporter(recipe.name) as reporter:
        version = train(recipe, registry, reporter, options.resume, group=group)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in version.metrics["test"].items())
    following = suggested(f"lorary show {version.reference}", registry.path)
    print(f"{version.reference}: {figures}\nFiles: {reporter.folder}\nNext:  {following}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="accelerate launch -m lorary.training",
        description="Train one adapter in several processes; training.batch_size is each process's.",
        epilog="example: accelerate launch --config_file examples/accelerate/ddp.yaml -m lorary.training recipe.yaml",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="the settings of the run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the recipe; repeatable"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the newest unfinished run of the recipe")
    parser.add_argument("--registry", type=Path, metavar="PATH", help="the catalogue; default $LORARY_REGISTRY")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


if __name__ == "__main__":
    sys.exit(main())
