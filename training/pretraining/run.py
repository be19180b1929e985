"""``pretrain``: from a corpus to a base model in the catalogue."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorary.adapters.device import pick_device
from lorary.adapters.identity import fingerprint_model
from lorary.adapters.loading import is_encoder
from lorary.hub.errors import GateError, InterruptedRunError
from lorary.hub.registry import Registry
from lorary.hub.values import PretrainedBase
from lorary.training.data import Example
from lorary.training.fitting.evaluate import token_logits
from lorary.training.pretraining.architecture import make_model
from lorary.training.pretraining.corpus import Corpus, Objective, load_corpus
from lorary.training.pretraining.recipe import PretrainRecipe
from lorary.training.pretraining.tokenizer import train_tokenizer
from lorary.training.progress import Reporter, quiet_libraries
from lorary.training.provenance import environment, peak_memory
from lorary.training.save import writing
from lorary.training.tasks.made_rows import MadeRows
from lorary.training.tasks.token_scores import token_metrics

if TYPE_CHECKING:
    from lorary.training.pretraining.fit import Fit

_GOLDEN = 4  # rows whose logits the saved files have to give back
_TEXTS = 16  # of which the saved tokenizer has to make the same tokens
_TOLERANCE = 1e-4  # relative to 1 + the largest logit


def pretrain(
    recipe: PretrainRecipe, registry: Registry | None = None, progress: Reporter | None = None
) -> PretrainedBase:
    """Train a tokenizer and a model on a corpus, check the saved files and register them as a base.

    Args:
        recipe: from :meth:`PretrainRecipe.load` or :meth:`PretrainRecipe.from_flags`.
        registry: the catalogue to add it to; the default one unless given.
        progress: is told of phases, steps and notices.

    Returns:
        The base; recipes take it by its name. Its metrics are ``test`` and ``unigram``, on held-out documents: loss
        (nats a token), perplexity, token accuracy, and a causal model's bits per byte.

    Raises:
        DataError: text that can't be read, by file and line, or too little of it.
        TrainingError: the run can't go on.
        GateError: the saved files aren't what was trained; nothing was registered.
        RegistryConflictError: a base of that name is there already; known before the run.
        InterruptedRunError: Ctrl-C; nothing was registered and no files are left.
    """
    reporter, registry = progress or Reporter(), registry or Registry()
    registry.bases.demand_free(recipe.name)
    try:
        reporter.phase("reading the corpus")
        corpus = load_corpus(recipe, reporter.note)
        with quiet_libraries(), _working_folder(registry, recipe.name) as folder:
            finished = _run(recipe, corpus, folder, reporter)
            reporter.phase("registering")
            base = registry.bases.add(
                folder / "base",
                name=recipe.name,
                fingerprint=str(fingerprint_model(finished.model)),
                architecture=str(finished.model.config.model_type),
                parameters=sum(parameter.numel() for parameter in finished.model.parameters()),
                metrics=finished.metrics,
                provenance=finished.provenance,
            )
    except KeyboardInterrupt as error:
        raise InterruptedRunError(f"{recipe.name}: stopped; nothing was registered and no files are left") from error
    reporter.folder = base.folder
    reporter.phase("done")
    return base


@dataclass(frozen=True)
class _Finished:
    """A run whose files are checked; ``model`` is the one that was loaded from them."""

    model: Any
    metrics: dict[str, dict[str, float]]
    provenance: dict[str, Any]


@contextmanager
def _working_folder(registry: Registry, name: str) -> Iterator[Path]:
    """A folder beside the registry, where the base will be kept; gone afterwards.

    Raises:
        TrainingError: it can't be made.
    """
    place = registry.path.parent
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.pretraining-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(recipe: PretrainRecipe, corpus: Corpus, folder: Path, reporter: Reporter) -> _Finished:
    # Only here, where the libraries are quiet, and after the corpus: a bad one is told without their imports.
    from lorary.training.pretraining.fit import fit, scores

    reporter.phase("training the tokenizer")
    tokenizer = train_tokenizer(recipe, [example.values["text"] for example in corpus.train])
    if len(tokenizer) < recipe.tokenizer.vocab_size:
        reporter.note(
            f"the corpus gives {len(tokenizer):,} tokens, tokenizer.vocab_size allows {recipe.tokenizer.vocab_size:,}"
        )
    objective = Objective(recipe, tokenizer)
    rows = {
        part: objective.encode(documents)
        for part, documents in (("train", corpus.train), ("validation", corpus.validation), ("test", corpus.test))
        if documents
    }
    model = make_model(recipe, tokenizer).to(pick_device(recipe.device))
    device = next(model.parameters()).device
    reporter.phase("training")
    started = time.perf_counter()
    with writing(folder):
        fitted = fit(
            model, objective, rows["train"], rows.get("validation"), recipe,
            folder=folder / "checkpoints", reporter=reporter,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    reporter.phase("measuring")
    found = scores(model, objective, rows["test"], recipe.training.batch_size)
    metrics = {"test": token_metrics(found), "unigram": objective.unigram(rows["train"], rows["test"])}
    if objective.causal:
        for values in metrics.values():
            values["bits_per_byte"] = values["loss"] * _tokens_per_byte(rows["test"], corpus.test) / math.log(2)
    if metrics["test"]["loss"] >= metrics["unigram"]["loss"]:
        reporter.note("no better than token frequencies alone on held-out text: train longer, or on more text")
    reporter.phase("saving and checking the files")
    with writing(folder):
        _save(model, tokenizer, recipe, folder / "base")
    told = _provenance(recipe, corpus, rows, fitted, seconds, len(tokenizer), device, reporter)
    return _Finished(_reload(folder / "base", model, tokenizer, corpus.test, rows["test"]), metrics, told)


def _tokens_per_byte(rows: MadeRows, documents: Sequence[Example]) -> float:
    return len(rows.rows.ids) / sum(len(example.values["text"].encode()) for example in documents)


def _save(model: Any, tokenizer: Any, recipe: PretrainRecipe, folder: Path) -> None:
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    (folder / "pretrain.yaml").write_text(_public(recipe).to_yaml(), encoding="utf-8")


def _reload(folder: Path, model: Any, tokenizer: Any, documents: Sequence[Example], rows: MadeRows) -> Any:
    """The model as anybody will load it; it has to be the one that was trained.

    Raises:
        GateError: a tensor, the tokenizer or the logits of held-out rows differ.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    auto = AutoModelForMaskedLM if is_encoder(model.config) else AutoModelForCausalLM
    loaded, info = auto.from_pretrained(str(folder), dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise GateError(f"the saved model lacks or adds tensors: {sorted(info['missing_keys'])[:3]}")
    trained = model.to("cpu").state_dict()
    for name, tensor in loaded.state_dict().items():
        if not torch.equal(tensor, trained[name]):
            raise GateError(f"{name!r}: the saved tensor differs from the trained one")
    loaded.eval()
    probes = [rows[place]["input_ids"] for place in range(min(_GOLDEN, len(rows)))]
    for row, want, got in zip(probes, token_logits(model, probes), token_logits(loaded, probes), strict=True):
        difference = float((want - got).abs().max() / (1 + want.abs().max()))
        if not difference <= _TOLERANCE:
            raise GateError(
                f"a row of {len(row)} tokens: the saved model's logits differ by {difference:.2g} (relative)"
            )
    texts = [example.values["text"] for example in documents[:_TEXTS]]
    if AutoTokenizer.from_pretrained(str(folder))(texts)["input_ids"] != tokenizer(texts)["input_ids"]:
        raise GateError("the saved tokenizer makes other tokens of held-out texts than the trained one")
    return loaded


def _provenance(
    recipe: PretrainRecipe, corpus: Corpus, rows: dict[str, MadeRows], fitted: Fit, seconds: float, vocabulary: int,
    device: torch.device, reporter: Reporter,
) -> dict[str, Any]:  # fmt: skip
    every = -(-len(fitted.curve) // 200) or 1
    return {
        "data": corpus.provenance,
        "tokens": {part: len(made.rows.ids) for part, made in rows.items()},
        "vocabulary": vocabulary,
        "recipe": _public(recipe).model_dump(mode="json", exclude_none=True),
        "environment": environment(device),
        "steps": fitted.steps,
        "best_epoch": fitted.best_epoch,
        "loss": fitted.loss,
        "curve": [list(point) for point in fitted.curve[::every]],
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory(device),
        "notices": [_without_folders(line, recipe) for line in reporter.notices],
    }


def _public(recipe: PretrainRecipe) -> PretrainRecipe:
    """The recipe without the folders of the machine that ran it."""

    def last(text: str | None) -> str | None:
        return Path(text).name if text and (Path(text).is_absolute() or text.startswith("~")) else text

    data = recipe.data.model_copy(update={key: last(getattr(recipe.data, key)) for key in ("train", "test")})
    return recipe.model_copy(update={"data": data})


def _without_folders(line: str, recipe: PretrainRecipe) -> str:
    for path in (recipe.data.train, recipe.data.test):
        if path and Path(path).expanduser().is_absolute():
            line = line.replace(path, Path(path).name)
    return line
