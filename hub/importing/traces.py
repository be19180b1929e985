"""What other trainers leave beside an adapter, read for what it tells of the run: settings, data, metrics.

Nothing is unpickled, no link is followed, and what can't be read counts as not there. The files and their keys are
those of transformers' Trainer (``trainer_state.json``, ``all_results.json``, the model card), LLaMA-Factory
(``training_args.yaml``) and axolotl (its config inside the model card).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorary.hub.checkpoint import KEPT_FILES, Checkpoint
from lorary.hub.embedding import EMBEDDING_FILES
from lorary.hub.importing.discover import Found
from lorary.hub.importing.mlx import MLX_WEIGHTS_NAME
from lorary.hub.importing.origin import embedding_beside
from lorary.hub.importing.plain_yaml import load_plain_yaml
from lorary.hub.jsontext import load_json
from lorary.hub.markup import clean
from lorary.hub.provenance.curve import thinned
from lorary.hub.provenance.front_matter import read_front_matter, terms_in
from lorary.hub.provenance.private import bare_name
from lorary.hub.tables.insertion import Metrics

_LARGEST = 50_000_000  # bytes
_SHOWN = 6
# Of a card's index: by YAML's aliases a few lines may stand for more results than anybody can wait for.
_MODELS, _RESULTS, _FIGURES = 10, 500, 100
_READ = EMBEDDING_FILES | {"trainer_state.json", "training_args.yaml", "all_results.json", "eval_results.json"}
_NOT_METRICS = re.compile(
    r"runtime|.*_per_second|model_preparation_time|.*_flos|epoch|num_input_tokens_seen|num_tokens"
)
_TOOLS = ("axolotl", "llama-factory", "unsloth", "trl", "sentence-transformers")
_AXOLOTL = ("See axolotl config</summary>", "```yaml\n", "\n```")
"""What stands before axolotl's config in a card, what the config begins with, and what it ends with."""
_PACKAGE = re.compile(r"^- (PEFT|Transformers|Pytorch|TRL|Datasets|Tokenizers|Unsloth):? +([\w.+-]+)\s*$", re.MULTILINE)
# Each setting by its name in a recipe here, then LLaMA-Factory's (and the Trainer's), axolotl's, and mlx-lm's.
_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "epochs": ("num_train_epochs", "num_epochs"),
    "max_steps": ("max_steps", "iters"),
    "batch_size": ("per_device_train_batch_size", "micro_batch_size", "batch_size"),
    "gradient_accumulation": ("gradient_accumulation_steps", "grad_accumulation_steps"),
    "learning_rate": ("learning_rate",),
    "scheduler": ("lr_scheduler_type", "lr_scheduler"),
    "warmup": ("warmup_ratio",),
    "weight_decay": ("weight_decay",),
    "max_length": ("cutoff_len", "sequence_len", "max_seq_length"),
    "seed": ("seed",),
}


@dataclass(frozen=True)
class Traces:
    """What was found: ``told`` has the form of a manifest's provenance, ``left`` are files that weren't taken.

    ``notes`` are worth knowing.
    """

    told: Mapping[str, Any] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_traces(found: Found, checkpoint: Checkpoint, of_mlx: Mapping[str, Any] | None = None) -> Traces:
    """Read what lies beside an adapter, and in its run's folder where it is a checkpoint of a run.

    ``of_mlx`` is the config of an adapter that mlx-lm made, in which it keeps its settings.
    """
    places = [found.folder] if found.run == found.folder else [found.folder, found.run]
    state = _first_mapping(_json(place / "trainer_state.json") for place in places)
    results = _first_mapping(
        _json(place / name) for place in places for name in ("eval_results.json", "all_results.json")
    )
    readme = next((place / "README.md" for place in places if _readable(place / "README.md")), None)
    card = read_front_matter(readme) if readme else {}
    text = readme.read_text(encoding="utf-8", errors="replace") if readme else ""
    written = [*(_text(place / "training_args.yaml") for place in places), _axolotl(text)]
    settings = of_mlx or _first_mapping(map(_yaml, written))
    embedding, other = embedding_beside(found.folder)
    training, terms, run = _training(settings, state), terms_in(card), clean(found.run.resolve().name)
    told = {
        "imported": {"tool": "mlx-lm" if of_mlx else _tool(card, text, settings), "run": run, "checkpoint": found.step},
        "recipe": {
            **_adapter(checkpoint.config),
            **({"quantization": quantization} if (quantization := _quantization(settings)) else {}),
            **({"training": training} if training else {}),
        },
        "data": _data(card, {**settings, "dataset": of_mlx.get("data")} if of_mlx else settings),
        "environment": {"packages": _packages(checkpoint.config, text)},
        "licenses": {"adapter": terms.license} if terms.license else {},
        "languages": list(terms.languages),
        "seed": training.get("seed"),
        "steps": _count(state.get("global_step")),
        "curve": _curve(state),
        "embedding": embedding.told() if embedding else {},
    }
    return Traces(
        told={name: value for name, value in told.items() if value not in (None, [], {})},
        metrics=_metrics(state, results, card, found.step),
        left=tuple(_left(found.folder, {MLX_WEIGHTS_NAME} if of_mlx else set())),
        notes=(other,) if other else (),
    )


def _training(settings: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: next((settings[key] for key in keys if key in settings), None) for name, keys in _SETTINGS.items()}
    known["epochs"] = known["epochs"] or state.get("num_train_epochs")
    known["batch_size"] = known["batch_size"] or state.get("train_batch_size")
    plain = {name: _number_in(value) for name, value in known.items()}
    return {name: value for name, value in plain.items() if value is not None and value != -1}


def _number_in(value: Any) -> int | float | str | None:
    """A setting's value; YAML 1.1 reads 1e-4 as a text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value if len(value) < 100 else None
    return value if _finite(value) else None


def _adapter(config: Mapping[str, Any]) -> dict[str, Any]:
    targets = config.get("target_modules")
    lora = {"rank": config.get("r"), "alpha": config.get("lora_alpha"), "dropout": config.get("lora_dropout")}
    named = {"targets": sorted(map(str, targets)) if isinstance(targets, list) else targets}
    return {
        "lora": {name: value for name, value in (lora | named).items() if isinstance(value, (int, float, str, list))}
    }


def _quantization(settings: Mapping[str, Any]) -> str | None:
    bits = settings.get("quantization_bit")
    if settings.get("load_in_4bit") is True or bits == 4:
        return "nf4"
    return "int8" if settings.get("load_in_8bit") is True or bits == 8 else None


def _data(card: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The names of what it was trained on: neither rows nor hashes are known."""
    named = [entry.get("path") if isinstance(entry, Mapping) else entry for entry in _listed(settings.get("datasets"))]
    named += [
        part.strip() for text in _listed(settings.get("dataset")) if isinstance(text, str) for part in text.split(",")
    ]
    names = [name for name in (named or _listed(card.get("datasets"))) if isinstance(name, str) and name]
    if not names:
        return {}
    return {"train": {"name": ", ".join(map(bare_name, names[:20])), "rows": None, "sha256": None, "revision": None}}


def _tool(card: Mapping[str, Any], text: str, settings: Mapping[str, Any]) -> str | None:
    tags = {tag.lower() for tag in _listed(card.get("tags")) if isinstance(tag, str)}
    if "axolotl" in tags or _axolotl(text) is not None:
        return "axolotl"
    if "llama-factory" in tags or "finetuning_type" in settings or "cutoff_len" in settings:
        return "llama-factory"
    return next((tool for tool in _TOOLS if tool in tags), None)


def _packages(config: Mapping[str, Any], text: str) -> dict[str, str]:
    named = {name.lower().replace("pytorch", "torch"): version for name, version in _PACKAGE.findall(text[-20_000:])}
    peft = config.get("peft_version")
    return {**({"peft": peft} if isinstance(peft, str) else {}), **named}


def _curve(state: Mapping[str, Any]) -> list[list[float]]:
    return thinned([[entry["step"], entry["loss"]] for entry in _log(state) if _finite(entry.get("loss"))])


def _metrics(
    state: Mapping[str, Any], results: Mapping[str, Any], card: Mapping[str, Any], step: int | None
) -> dict[str, dict[str, float]]:
    """Of the rows that the run was watched on; a card's own results on a split called test count as held-out ones."""
    logged = [entry for entry in _log(state) if _evaluated(entry) and (step is None or entry["step"] <= step)]
    metrics = {"validation": _evaluated(logged[-1]) if logged else _evaluated(results)}
    for result in _card_results(card):
        split = "test" if result.get("split") == "test" else "validation"
        metrics.setdefault(split, {}).update(result["metrics"])
    return {split: values for split, values in metrics.items() if values}


def _evaluated(entry: Mapping[str, Any]) -> dict[str, float]:
    found = {
        key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_") and _finite(value)
    }
    return {name: float(value) for name, value in found.items() if not _NOT_METRICS.fullmatch(name)}


def _card_results(card: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The model index, in the form that the Hub documents."""
    for model in _listed(card.get("model-index"))[:_MODELS]:
        for result in _listed(model.get("results"))[:_RESULTS] if isinstance(model, Mapping) else ():
            if not isinstance(result, Mapping):
                continue
            dataset = result.get("dataset")
            values = {
                str(metric["type"]): float(metric["value"])
                for metric in _listed(result.get("metrics"))[:_FIGURES]
                if isinstance(metric, Mapping) and isinstance(metric.get("type"), str) and _finite(metric.get("value"))
            }
            yield {"split": dataset.get("split") if isinstance(dataset, Mapping) else None, "metrics": values}


def _log(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    history = state.get("log_history")
    entries = [entry for entry in history if isinstance(entry, Mapping)] if isinstance(history, list) else []
    return [entry for entry in entries if _count(entry.get("step")) is not None]


def _left(folder: Path, taken: Collection[str]) -> Iterator[str]:
    """Files that aren't an adapter's: optimizer and scheduler states, random states, pickled settings, logs."""
    others = sorted(
        path.name for path in folder.iterdir()
        if path.is_file() and path.name not in (*KEPT_FILES, *_READ, *taken) and not path.name.startswith(".")
    )  # fmt: skip
    yield from others[:_SHOWN]
    if len(others) > _SHOWN:
        yield f"{len(others) - _SHOWN} more"


def _axolotl(text: str) -> str | None:
    """The text of axolotl's config in a card, None where there is none."""
    before, begin, end = _AXOLOTL
    config, ended, _ = text.partition(before)[2].partition(begin)[2].partition(end)
    return config if ended else None


def _yaml(text: str | None) -> Any:
    try:
        return load_plain_yaml(text) if text else None
    except ValueError:
        return None


def _json(path: Path) -> Any:
    text = _text(path)
    try:
        return load_json(re.sub(r"\b(NaN|-?Infinity)\b", "null", text)) if text else None
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8") if _readable(path) else None
    except (OSError, UnicodeDecodeError):
        return None


def _readable(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size <= _LARGEST


def _first_mapping(values: Any) -> Mapping[str, Any]:
    return next((value for value in values if isinstance(value, Mapping) and value), {})


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
