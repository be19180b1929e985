"""Does the domain stage help? The base as it is, the task alone, and domain then task, on the same held-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.hub.errors import RecipeError
from lorary.hub.registry import Registry
from lorary.training.data import Examples, load_data
from lorary.training.experiments.bootstrap import Difference, paired_bootstrap
from lorary.training.experiments.comparison import Comparison, Option, comparing
from lorary.training.experiments.session import Session
from lorary.training.experiments.summary import summarise
from lorary.training.one_run import Finished
from lorary.training.progress import Reporter, quiet_libraries
from lorary.training.recipe import FLAG_OF, Recipe
from lorary.training.recipe.methods import PEFT_METHODS
from lorary.training.run import train
from lorary.training.run_facts import a_text, or_null
from lorary.training.save import output_folder, writing
from lorary.training.strategies.parent import Parent, find_parent
from lorary.training.unfinished import Unfinished

DIRECT, TASK, STAGED = ARMS = ("direct", "task", "domain then task")
SEEDS = 3
COMMAND = "train --ablate"

_STAGE = "domain stage"
_BEGUN, _DONE = {"folder": a_text("a folder")}, {"reference": a_text("a reference")}
_SHAPE = {"rank", "alpha", "targets", "rank_pattern", "alpha_pattern"}


@dataclass(frozen=True)
class Ablation:
    """By arm (:data:`ARMS`): each metric's mean, std and values over the seeds.

    ``gain`` is domain-then-task against the task alone, by paired bootstrap; ``parent`` the domain adapter.
    """

    metric: str
    held_out: int
    seeds: tuple[int, ...]
    arms: Mapping[str, Mapping[str, Mapping[str, Any]]]
    gain: Difference
    parent: str

    @property
    def verdict(self) -> str:
        """What the figures say, in a sentence."""
        gain = self.gain
        figures = f"{gain.metric} {gain.value:+.4g}, 95% of resamples between {gain.low:+.4g} and {gain.high:+.4g}"
        said = {
            "better": "the domain stage helps",
            "worse": "the domain stage does harm",
            "no difference": "no difference can be told on these rows",
        }[gain.verdict]
        return f"domain then task against task alone: {said} ({figures})"


def ablate(
    recipe: Recipe,
    registry: Registry,
    *,
    corpus: str | None = None,
    seeds: int | None = None,
    progress: Reporter | None = None,
    resume: bool | str | Path = False,
) -> Ablation:
    """Train a recipe's task with and without its domain stage and compare them.

    The task alone has the rank, alpha and targets of the other arm, so that only the beginning differs. Nothing is
    registered but the domain adapter, where it is trained here.

    Args:
        recipe: the task's; its ``from`` names the domain adapter, unless ``corpus`` is given.
        registry: where the domain adapter is looked up or put.
        corpus: the domain's unlabelled text, on which a domain adapter is trained first, as ``<name>-domain``.
        seeds: how many runs each arm has; 3 unless given.
        progress: is told of phases, steps and notices.
        resume: go on with an ablation that was stopped: the newest of this recipe (True), or that of a folder. It keeps
            its corpus and seeds. Runs that are done aren't trained again, only measured.

    Raises:
        RecipeError: there is no domain adapter to compare with, or two.
        Others: as :func:`lorary.training.train`.
    """
    reporter = progress or Reporter()
    asked = {"corpus": Option(corpus, None, or_null(a_text("a file or null"))), "seeds": Option(seeds, SEEDS)}
    with comparing(recipe, registry, reporter, COMMAND, resume, asked) as comparison:
        return _compare(comparison, registry)


def _compare(comparison: Comparison, registry: Registry) -> Ablation:
    reporter, corpus, seeds = comparison.reporter, comparison.options["corpus"], comparison.options["seeds"]
    _check(comparison.recipe, corpus)
    if corpus is not None and not comparison.resumed:
        _domain_recipe(comparison.recipe, corpus)  # what is wrong with it is told before the rows are read
    reporter.phase("reading the data")
    data = load_data(comparison.recipe, reporter.note)
    comparison.begin(data)
    recipe = _with_parent(comparison, registry, corpus)
    parent = find_parent(recipe, registry)
    assert parent is not None
    comparison.hold("domain", parent.checkpoint.digest, f"{parent.reference} is another version now")
    numbers = tuple(range(recipe.training.seed, recipe.training.seed + seeds))
    with quiet_libraries(), writing(comparison.unfinished.final):
        session = comparison.session()
        staged = _arm(session, recipe, data, parent, numbers)
        # After a stack the recipe is the task's own; after a continuation it has the parent's rank, alpha and targets.
        alone = staged[0].prepared.recipe.model_copy(update={"strategy": "fine-tune", "from_": None, "start": None})
        fresh = _arm(session, alone, data, None, numbers)
    task, golds = staged[0].prepared.task, staged[0].prepared.test.golds
    arms = {
        DIRECT: summarise([run.metrics["untrained"] for run in fresh]),
        TASK: summarise([run.metrics["test"] for run in fresh]),
        STAGED: summarise([run.metrics["test"] for run in staged]),
    }
    reporter.phase("comparing")
    gain = paired_bootstrap(task, golds, [run.outcomes for run in staged], [run.outcomes for run in fresh])
    reporter.phase("done")
    return Ablation(task.main_metric, len(golds), numbers, arms, gain, parent.reference)


def _arm(
    session: Session, recipe: Recipe, data: Examples, parent: Parent | None, seeds: Sequence[int]
) -> list[Finished]:
    runs = []
    quiet = recipe.report.model_copy(update={"write": False})
    for seed in seeds:
        training = recipe.training.model_copy(update={"seed": seed, "seeds": 1})
        one = recipe.model_copy(update={"training": training, "report": quiet})
        name = STAGED if parent else TASK
        finished = session.run(one, data, f"{name}, seed {seed}", parent)
        session.release(finished)
        runs.append(finished)
    return runs


def _check(recipe: Recipe, corpus: str | None) -> None:
    """Is there one domain stage, and nothing that contradicts it?

    Raises:
        RecipeError: the recipe has no domain stage, has two, or asks for folds, for no training, or for what can't go
            on with one.
    """
    problems = []
    if recipe.training.folds:
        problems.append("training.folds: an ablation compares seeds on the same held-out rows; leave it out")
    if recipe.strategy == "direct":
        problems.append("strategy: 'direct' trains nothing; an ablation has the base as it is beside the others")
    if corpus is None and recipe.from_ is None:
        problems.append("from: missing; an ablation needs a domain adapter (from), or --corpus with the domain's text")
    if corpus is not None and recipe.from_ is not None:
        problems.append("from: names a domain adapter, and --corpus trains one; leave one of them out")
    elif corpus is not None:
        problems += _not_continued(recipe)
    if problems:
        raise RecipeError(recipe.name, problems)


def _not_continued(recipe: Recipe) -> Iterator[str]:
    """Settings of a fresh adapter, which the domain stage's wouldn't have when the task goes on with it."""
    if recipe.method in PEFT_METHODS:
        yield f"method: {recipe.method!r} can't go on with a domain adapter; only low-rank weights are continued"
        return
    if recipe.lora.parameters is not None:
        yield "lora.parameters: adapters of parameters can't go on with a domain adapter; leave it out"
    for key in ("init", "exclude", "layers"):
        if getattr(recipe.lora, key) not in (None, "default"):
            yield (
                f"lora.{key}: the domain adapter of --corpus has it settled when it is continued; leave it out, or "
                "train that adapter first and name it in from, with start: stack"
            )


def _with_parent(comparison: Comparison, registry: Registry, corpus: str | None) -> Recipe:
    """The recipe of the arm with a domain stage; trains that stage where a corpus is given and it isn't done yet."""
    recipe, run = comparison.recipe, comparison.unfinished
    if corpus is None:
        return recipe.model_copy(update={"strategy": "intermediate"})
    stage = run.part(_STAGE, _BEGUN, _DONE)
    if stage is None:
        # Noted before it is trained: a kill at any moment leaves where to find it, half done or done.
        stage = {"folder": str(output_folder(_domain_recipe(recipe, corpus)).absolute())}
        run.keep_part(_STAGE, stage)
    reference = stage.get("reference")
    if reference is None:
        folder = Path(stage["folder"])
        domain = _domain_recipe(recipe, corpus).model_copy(update={"output": stage["folder"]})
        goes_on = folder if folder.exists() or Unfinished(folder).resumable else False
        reference = train(domain, registry, comparison.reporter, resume=goes_on).reference
        run.keep_part(_STAGE, {**stage, "reference": reference})
    comparison.reporter.note(f"the domain adapter is in the catalogue as {reference}")
    return recipe.model_copy(update={"strategy": "intermediate", "from_": reference, "start": "continue"})


def _domain_recipe(recipe: Recipe, corpus: str) -> Recipe:
    """The recipe of the domain stage: the same base, continued on the corpus as it was pretrained.

    Raises:
        RecipeError: the corpus can't be used; the user knows it as ``--corpus``.
    """
    from transformers import AutoConfig

    from lorary.adapters.base.loading import is_encoder
    from lorary.hub.base_files import resolve_base
    from lorary.training.tasks.forms import T5_KIN

    config = AutoConfig.from_pretrained(resolve_base(recipe.base, revision=recipe.revision).path)
    writes = bool(getattr(config, "is_encoder_decoder", False))
    settings = {
        "name": f"{recipe.name}-domain", "domain": recipe.domain, "base": recipe.base, "revision": recipe.revision,
        "task": "fill-mask" if writes or is_encoder(config) else "text-generation", "strategy": "continual",
        "data.source_lang": recipe.data.source_lang if writes and config.model_type not in T5_KIN else None,
        "data.train": corpus, "method": recipe.method, "quantization": recipe.quantization,
        "training.seed": recipe.training.seed, "device": recipe.device, "device_map": recipe.device_map,
        "dtype": recipe.dtype,
        # The task's adapter goes on with these weights, so they are as it wants them.
        **{f"lora.{key}": getattr(recipe.lora, key) for key in _SHAPE & recipe.lora.model_fields_set},
    }  # fmt: skip
    try:
        return Recipe.from_flags({key: value for key, value in settings.items() if value is not None})
    except RecipeError as error:
        ours = f"{FLAG_OF['data.train']}: data.train: "
        raise RecipeError(recipe.name, [problem.replace(ours, "--corpus: ") for problem in error.problems]) from error
