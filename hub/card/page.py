"""A card's text: what the adapter is, how good it is, how to use it, its limits, and how it came to be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorary.hub.card.metadata import front_matter, hub_base, hub_license
from lorary.hub.card.samples import lorary_sample, peft_sample
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.manifest import GENERATING
from lorary.hub.markup import markdown
from lorary.hub.metrics import OWN_SPLITS, SPLITS, headline, lower_is_better, splits_of
from lorary.hub.noted_task import likely_task
from lorary.hub.provenance.origin import DataPart, Origin, git_state, packages, read_origin
from lorary.hub.provenance.private import public_base
from lorary.hub.tables.catalogue import demand_task
from lorary.hub.units import memory, short_number, size
from lorary.hub.values import Version

_FEW_ROWS = 1000  # below it, a share of right answers is known to no better than a few hundredths
_LISTED = 50  # labels or tokens
_METHODS: Mapping[str, str] = {
    "lora": "LoRA", "qlora": "QLoRA", "dora": "DoRA", "rslora": "rsLoRA", "adalora": "AdaLoRA",
}  # fmt: skip
_SETTINGS: Mapping[str, str] = {
    "strategy": "strategy",
    "method": "method",
    "quantization": "quantization of the base",
    "lora.rank": "rank",
    "lora.alpha": "alpha",
    "lora.dropout": "dropout",
    "lora.targets": "target modules",
    "training.epochs": "epochs",
    "training.batch_size": "batch size",
    "training.gradient_accumulation": "gradient accumulation",
    "training.learning_rate": "learning rate",
    "training.scheduler": "scheduler",
    "training.warmup": "warmup",
    "training.weight_decay": "weight decay",
    "training.max_length": "longest text (tokens)",
}


def make_card(version: Version, checkpoint: Checkpoint, *, repo: str | None = None) -> str:
    """The text of a version's ``README.md``: front matter and Markdown.

    Whatever comes from the adapter's files (labels, names, notices) stands in it as text: no markup of theirs acts.

    Args:
        version: the version, as the catalogue knows it.
        checkpoint: its files.
        repo: the repository on the Hub that the code is to load; by default the folder that ``lorary export`` writes.

    Raises:
        RegistryError: somebody has written into its row what isn't a task.
    """
    demand_task(version.reference, version.task)
    version = replace(version, base_id=public_base(version.base_id) if version.base_id else None)
    origin = read_origin(version, checkpoint.told)
    where = repo or f"./{version.name}"
    sections = [
        ("", _what(version, origin)),
        ("How good it is", _results(version, origin)),
        ("How to use it", _use(version, checkpoint, where, exported=repo is None)),
        ("Limits", [f"- {line}" for line in _limits(version, origin)]),
        ("How it was trained", _training(version, origin)),
        ("Where it comes from", _identity(version, origin)),
    ]
    body = "\n\n".join(
        "\n".join([*([f"## {title}", ""] if title else []), *lines]) for title, lines in sections if lines
    )
    return f"---\n{front_matter(version, origin)}\n---\n\n# {markdown(version.name)}\n\n{body}\n"


def _what(version: Version, origin: Origin) -> list[str]:
    method = _METHODS.get(version.method) or version.method
    article = "An" if method[0].lower() in "aeiou" else "A"
    rank = f"rank {version.rank}, " if version.rank else ""
    base = markdown(version.base_id) if version.base_id else "a base model that its files don't name"
    on_hub = hub_base(version, origin)
    if on_hub:
        base = f"[{base}](https://huggingface.co/{on_hub})"
    lines = [
        f"{article} {markdown(method)} adapter ({rank}{version.parameters:,} parameters, "
        f"{size(version.size_bytes)}) for {version.task.replace('-', ' ')}, domain {markdown(version.domain)}, "
        f"on {base}. It needs that base model to run.",
    ]
    manifest = version.manifest
    if manifest and manifest.labels:
        lines += ["", f"Labels: {_first(manifest.labels)}."]
    if manifest and manifest.added_tokens:
        added = _first(manifest.added_tokens)
        lines += ["", f"Tokens that it adds to the base's: {added}. Its tokenizer lies beside it."]
    if manifest is None:
        lines += [
            "",
            f"It was made outside lorary{f', with {markdown(origin.tool)},' if origin.tool else ''} and came without a "
            "manifest: which state of the base it belongs to isn't known"
            + (", and of its training only what is told below." if origin.recipe else ", nor how it was trained."),
        ]
    return lines


def _first(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return ", ".join(map(markdown, texts[:_LISTED])) + more


def _results(version: Version, origin: Origin) -> list[str]:
    splits = splits_of(version.metrics)
    if not splits:
        return ["It hasn't been measured."]
    names = dict.fromkeys(name for split in splits for name in version.metrics[split])
    rows = [[markdown(name), *(_value(version.metrics[split].get(name)) for split in splits)] for name in names]
    lines = _table(["metric", *(markdown(SPLITS.get(split, split)) for split in splits)], rows)
    count = origin.rows.get("test")
    if count and "test" in version.metrics:
        part = next((part for part in origin.data if part.split == "test"), None)
        where = f" of {markdown(part.name)}" if part else ", split off from the training data"
        lines = [f"Measured on {count:,} held-out rows{where}.", "", *lines]
    return lines


def _value(value: float | None) -> str:
    return "" if value is None else short_number(value)


def _use(version: Version, checkpoint: Checkpoint, where: str, *, exported: bool) -> list[str]:
    folder = (
        [f"`{where}` is the folder that `lorary export {version.reference} {where}` writes.", ""] if exported else []
    )
    own = [
        "With lorary, which checks the base, applies the preprocessing and can hold many adapters on one base:",
        "",
        *_code(lorary_sample(version, checkpoint, where)),
        "",
    ]
    if checkpoint.manifest is None and not _is_taken_for(version.task, checkpoint):
        own = []
    return [*folder, *own, "With PEFT alone:", "", *_code(peft_sample(version, checkpoint, where))]


def _is_taken_for(task: str, checkpoint: Checkpoint) -> bool:
    """Is an adapter without a manifest asked the same way once it is in no catalogue that has it for this task?"""
    found = likely_task(checkpoint.config)
    return found == task or {found, task} <= set(GENERATING)


def _code(text: str) -> list[str]:
    return ["```python", *text.split("\n"), "```"]


def _limits(version: Version, origin: Origin) -> Iterator[str]:
    manifest, metrics = version.manifest, version.metrics.get("test", {})
    count = origin.rows.get("test")
    if not metrics:
        yield "No figures on held-out rows: measure it on your own before you rely on it."
    elif count and count < _FEW_ROWS:
        accuracy = metrics.get("accuracy")
        near = ""
        if accuracy is not None and 0 < accuracy < 1:
            margin = 1.96 * (accuracy * (1 - accuracy) / count) ** 0.5
            near = f" (by chance alone an accuracy of {accuracy:.2f} may be off by {margin:.2f}, 95%)"
        yield f"The figures rest on only {count:,} held-out rows{near}."
    if metrics:
        yield "The held-out rows are like the training rows. Other texts may be harder."
    yield from _no_gain(version)
    if origin.languages:
        yield f"Languages of the data: {', '.join(map(markdown, origin.languages))}. Others weren't tried."
    else:
        yield "The language of its data isn't stated."
    if manifest is None or not manifest.base.fingerprint:
        yield "Nothing in its files tells which state of the base it was trained on; lorary loads it as unverified."
    elif not manifest.base.commit:
        yield (
            "No commit of the base is known. Its fingerprint tells whether a copy is the right one; lorary checks it."
        )
    if version.quantization != "none":
        yield f"Trained on {version.quantization} weights; on others its answers differ a little."
    if manifest and manifest.preprocessing.max_length and not manifest.preprocessing.stride:
        yield f"Longer texts are cut after {manifest.preprocessing.max_length:,} tokens."
    yield from (f"Noted by the run: {markdown(notice)}." for notice in origin.notices[:10])
    yield _license(origin)


def _no_gain(version: Version) -> Iterator[str]:
    """What it is compared with and isn't better than."""
    main = headline(version.metrics.get("test", {}))
    if main is None:
        return
    name, value = main
    sign = -1 if lower_is_better(name) else 1
    for split, others in version.metrics.items():
        if split not in OWN_SPLITS and name in others and sign * value <= sign * others[name]:
            yield f"On {markdown(name)} it is no better than {markdown(SPLITS.get(split, split))}."


def _license(origin: Origin) -> str:
    told = [
        f"license of the {what}: {markdown(hub_license(text) or text)}"
        for what, text in (
            ("adapter", origin.adapter_license),
            ("base", origin.base_license),
            ("data", origin.data_license),
        )
        if text
    ]
    missing = [what for what, text in (("base", origin.base_license), ("data", origin.data_license)) if not text]
    unknown = [f"the license of the {' and the '.join(missing)} isn't stated"] if missing else []
    line = "; ".join([*told, *unknown])
    return line[0].upper() + line[1:] + "."


def _training(version: Version, origin: Origin) -> list[str]:
    settings = [
        [name, markdown(_plain(value))]
        for dotted, name in _SETTINGS.items()
        if (value := origin.setting(dotted)) not in (None, {}, [])
    ]
    run: dict[str, Any] = {
        "seed": origin.seed,
        "steps": f"{origin.steps:,}" if origin.steps else None,
        "time of training": f"{origin.seconds:,.0f} s" if origin.seconds else None,
        "memory": memory(origin.peak_memory, origin.predicted_memory),
        "device": origin.device,
        "packages": packages(origin),
        "code": git_state(origin),
    }
    rows = settings + [[name, markdown(value)] for name, value in run.items() if value not in (None, "")]
    lines = _table(["setting", "value"], rows) if rows else []
    if origin.data:
        lines += ["", *_table(["data", "file or dataset", "rows", "hash or revision"], map(_data_row, origin.data))]
    if origin.rows:
        used = ", ".join(f"{count:,} for {markdown(split)}" for split, count in origin.rows.items())
        lines += ["", f"Rows used: {used}."]
    return lines


def _data_row(part: DataPart) -> list[str]:
    told = f"sha256 {part.sha256}" if part.sha256 else f"revision {part.revision}" if part.revision else ""
    if part.files:
        told = f"{len(part.files)} files"
    rows = f"{part.rows:,}" if part.rows is not None else ""
    return [markdown(part.split), markdown(part.name), rows, markdown(told)]


def _identity(version: Version, origin: Origin) -> list[str]:
    facts = {
        "version": version.reference,
        "created": version.created_at,
        "strategy": version.strategy,
        "made from": ", ".join(version.parents),
        "digest": version.digest,
        "base": version.base_id,
        "base's commit": origin.base_commit,
        "base's fingerprint": version.base_fingerprint,
        "base's files": "; ".join(f"{name} sha256 {sha256}" for name, sha256 in list(origin.base_files.items())[:20]),
    }
    rows = [[name, _long(value)] for name, value in facts.items() if value]
    return _table(["", ""], rows)


def _long(text: str) -> str:
    """Each part of a list by itself, so that only a part is cut that is too long."""
    return "; ".join(markdown(part) for part in text.split("; "))


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _table(header: Sequence[str], rows: Any) -> list[str]:
    return [_line(header), _line(["---"] * len(header)), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return re.sub(r" +", " ", f"| {' | '.join(cells)} |")
