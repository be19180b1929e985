"""``pretrain``: from a corpus to a base model in the catalogue."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorary.adapters.base.device import pick_device
from lorary.adapters.base.identity import fingerprint_model
from lorary.hub.files.store import sync_folder
from lorary.hub.registry import Registry
from lorary.hub.values import PretrainedBase
from lorary.training.attempt import attempt
from lorary.training.checkpoints import write_json
from lorary.training.data import Example
from lorary.training.interrupt import Stops
from lorary.training.pretraining.architecture import make_model
from lorary.training.pretraining.corpus import Corpus, Objective, ids_of, load_corpus
from lorary.training.pretraining.recipe import PretrainRecipe
from lorary.training.pretraining.tokenizer import train_tokenizer
from lorary.training.progress import Reporter, quiet_libraries
from lorary.training.resume import begin, check_same, choose_run
from lorary.training.run_facts import Check, a_count, a_table, a_text, metric_tables, read_part
from lorary.training.save import writing
from lorary.training.tasks.metrics.tokens import token_metrics
from lorary.training.tasks.rows.encoded import Encoded
from lorary.training.unfinished import Unfinished, sync_files

_TOLD: Mapping[str, Check] = {
    "fingerprint": a_text("a fingerprint"),
    "architecture": a_text("a model type"),
    "parameters": a_count,
    "metrics": metric_tables,
    "provenance": a_table,
}
_RESULT = "base.json"  # what the catalogue is told of the base; written when its files are complete


def pretrain(
    recipe: PretrainRecipe,
    registry: Registry | None = None,
    progress: Reporter | None = None,
    resume: bool | str | Path = False,
) -> PretrainedBase:
    """Train a tokenizer and a model on a corpus, check the saved files and register them as a base.

    Args:
        recipe: from :meth:`PretrainRecipe.load` or :meth:`PretrainRecipe.from_flags`.
        registry: the catalogue to add it to; the default one unless given.
        progress: is told of phases, steps and notices.
        resume: go on with a run that was stopped: the newest of this recipe (True), or that of a folder. On the same
            machine the base is that of a run that wasn't stopped.

    Returns:
        The base; recipes take it by its name. Its metrics are ``test`` and ``unigram``, on held-out documents: loss
        (nats a token), perplexity, token accuracy, and a causal model's bits per byte.

    Raises:
        DataError: text that can't be read, by file and line, or too little of it.
        TrainingError: the run can't go on, or there is no such run to go on with; the message says what to change.
        GateError: the saved files aren't what was trained; nothing was registered.
        RegistryConflictError: a base of that name is there already; known before the run.
        InterruptedRunError: Ctrl-C, SIGTERM or SIGHUP; nothing was registered, and the message says how to go on.
    """
    reporter, registry = progress or Reporter(), registry or Registry()
    unfinished = choose_run(recipe, resume, registry, "pretrain")
    if resume is not False:
        unfinished.demand_resumable()
    with attempt(unfinished, recipe.name, registry, reporter) as stops:
        result = unfinished.folder / _RESULT
        if not (resume is not False and result.is_file()):
            registry.bases.demand_free(recipe.name)
            _train(recipe, unfinished, registry, reporter, stops, resumed=resume is not False)
        reporter.phase("registering")
        told = read_part(result, _TOLD)
        kept = {key: told[key] for key in _TOLD}
        base = registry.bases.add(unfinished.folder / "base", name=recipe.name, **kept)
    reporter.folder = base.folder
    reporter.phase("done")
    return base


def _train(
    recipe: PretrainRecipe, unfinished: Unfinished, registry: Registry, reporter: Reporter, stops: Stops, *,
    resumed: bool,
) -> None:  # fmt: skip
    """From the corpus to checked files in the run's folder, and what the catalogue is told of them beside."""
    reporter.phase("reading the corpus")
    corpus = load_corpus(recipe, reporter.note)
    with writing(unfinished.final):
        if resumed:
            check_same(unfinished, recipe, corpus.provenance, None, 1, reporter)
        else:
            begin(unfinished, recipe, corpus.provenance, None, 1)
    with quiet_libraries(), writing(unfinished.final):
        told = _run(recipe, corpus, unfinished, reporter, stops)
        write_json(unfinished.folder / _RESULT, told)


def _run(
    recipe: PretrainRecipe, corpus: Corpus, unfinished: Unfinished, reporter: Reporter, stops: Stops
) -> dict[str, Any]:
    # Only here, where the libraries are quiet, and after the corpus: a bad one is told without their imports.
    from lorary.training.pretraining.files import base_provenance, reload_base, save_base
    from lorary.training.pretraining.fit import fit, scores

    tokenizer = _tokenizer(recipe, corpus, unfinished.folder / "tokenizer", reporter)
    model = make_model(recipe, tokenizer)
    objective = Objective(recipe, tokenizer, model)
    rows = {
        part: objective.encode(documents)
        for part, documents in (("train", corpus.train), ("validation", corpus.validation), ("test", corpus.test))
        if documents
    }
    model = model.to(pick_device(recipe.device))
    device = next(model.parameters()).device
    reporter.phase("training")
    fitted = fit(
        model, objective, rows["train"], rows.get("validation"), recipe,
        folder=unfinished.checkpoints, reporter=reporter, stops=stops,
    )  # fmt: skip
    reporter.phase("measuring")
    found = scores(model, objective, rows["test"], recipe.training.batch_size)
    metrics = {"test": token_metrics(found), "unigram": objective.unigram(rows["train"], rows["test"])}
    if objective.causal:
        for values in metrics.values():
            values["bits_per_byte"] = values["loss"] * _tokens_per_byte(rows["test"], corpus.test) / math.log(2)
    if metrics["test"]["loss"] >= metrics["unigram"]["loss"]:
        reporter.note("no better than token frequencies alone on held-out text: train longer, or on more text")
    reporter.phase("saving and checking the files")
    folder = unfinished.folder / "base"
    shutil.rmtree(folder, ignore_errors=True)
    save_base(model, tokenizer, recipe, folder)
    sync_files(folder)
    told = base_provenance(recipe, corpus, rows, fitted, len(tokenizer), device, reporter)
    loaded = reload_base(folder, model, tokenizer, objective, corpus.test, rows["test"])
    return {
        "fingerprint": str(fingerprint_model(loaded)),
        "architecture": str(loaded.config.model_type),
        "parameters": sum(parameter.numel() for parameter in loaded.parameters()),
        "metrics": metrics,
        "provenance": told,
    }


def _tokenizer(recipe: PretrainRecipe, corpus: Corpus, folder: Path, reporter: Reporter) -> Any:
    """The run's tokenizer, from ``folder``; trained and put there first where it isn't there yet.

    A run that goes on can't train it again: not all kinds come out the same.
    """
    from transformers import AutoTokenizer

    if not folder.is_dir():
        reporter.phase("training the tokenizer")
        trained = train_tokenizer(recipe, [example.values["text"] for example in corpus.train])
        if len(trained) < recipe.tokenizer.vocab_size:
            reporter.note(
                f"the corpus gives {len(trained):,} tokens, tokenizer.vocab_size allows {recipe.tokenizer.vocab_size:,}"
            )
        half = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(half, ignore_errors=True)
        trained.save_pretrained(str(half))
        sync_files(half)
        half.rename(folder)
        sync_folder(folder.parent)
    return AutoTokenizer.from_pretrained(str(folder))


def _tokens_per_byte(rows: Encoded, documents: Sequence[Example]) -> float:
    return len(ids_of(rows)) / sum(len(example.values["text"].encode()) for example in documents)
