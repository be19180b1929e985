"""The manifest, ``lorary.json``: what an adapter needs besides its weights to be used as it was trained.

The semantic part (task, labels, preprocessing, prompt, the base's fingerprint) belongs to a version's digest; the rest
(provenance, golden rows, where the base came from) may change without changing what the adapter is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lorary.hub.template_kwargs import template_kwargs_problem

MANIFEST_NAME = "lorary.json"
FORMAT = 6
"""The newest format."""

_SINCE: Mapping[str, int] = {
    "pooling": 2,
    "preprocessing.stride": 2,
    "preprocessing.source_lang": 3,
    "preprocessing.target_lang": 3,
    "generation": 3,
    "answering": 3,
    "thresholds": 4,
    "added_tokens": 4,
    "filling": 5,
    "prompt.chat_template_kwargs": 6,
}
"""Fields that a reader of format 1 can't know, and the format that each came with.

They are left out of the file and of the digest where they are off: what was written before stays what it was.
"""

_USED_IN_DIGEST = ("preprocessing", "pooling", "generation", "answering", "thresholds", "added_tokens", "filling")

POOLINGS = ("mean", "cls", "last")

GAPS = ("sentinels", "mask")
"""What stands in a gap that an encoder-decoder fills: a sentinel of its own, or the mask token."""

TASKS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "summarization",
    "translation",
    "text-generation",
    "fill-mask",
    "feature-extraction",
)
"""The tasks that the catalogue knows: Hugging Face pipeline tags."""

GENERATING = ("text-generation", "summarization", "translation")
"""Those of them whose answers are texts that are written."""

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
"""What a classifier's labels are, by transformers' names: one of several, any number of them, or a number."""

FORMATS = ("plain", "instruction", "chat")
"""How a prompt is put."""

MOST_TOKENS, MOST_FILLING, MOST_BEAMS, MOST_PENALTY = 1_000_000, 1000, 100, 100
"""Of a length in tokens, of what fills one gap, of beams, and of a length penalty in either direction.

A manifest may be a stranger's, and what asks for more would take all memory, or go on for days.
"""


@dataclass(frozen=True)
class BaseIdentity:
    """Which base model: its name, and the hashes by which copies and renamed repositories are recognised.

    ``fingerprint`` decides (:func:`lorary.hub.base.fingerprint`); differences in the other fields are worth a note.
    """

    id: str
    commit: str | None = None
    fingerprint: str | None = None
    tokenizer_sha256: str | None = None
    chat_template_sha256: str | None = None


@dataclass(frozen=True)
class Preprocessing:
    """How rows become token ids: ``columns`` maps a role (``text``, ``label``) to a column, lengths are in tokens.

    ``prefix`` stands before the text. ``stride``: by how many tokens the windows of a text that is too long overlap.
    ``source_lang`` and ``target_lang``: of a translation, as the tokenizer of a multilingual base calls them.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None
    prefix: str = ""
    stride: int | None = None
    source_lang: str | None = None
    target_lang: str | None = None

    def __post_init__(self) -> None:
        _demand_within("max_length", self.max_length, 1, MOST_TOKENS)
        _demand_within("stride", self.stride, 0, MOST_TOKENS)


@dataclass(frozen=True)
class Pooling:
    """How a text's hidden states become its embedding.

    ``mode`` is one of :data:`POOLINGS`: the mean over its tokens, the first token's state, or the last one's.
    ``normalize`` scales the embedding to length 1.
    """

    mode: str = "mean"
    normalize: bool = False

    def __post_init__(self) -> None:
        _demand_one_of("mode", self.mode, POOLINGS)


@dataclass(frozen=True)
class Answering:
    """How the spans of extractive question answering are read.

    ``max_tokens`` is the longest answer. ``impossible``: "no answer" competes with the spans, for an adapter that was
    trained on questions without one.
    """

    max_tokens: int
    impossible: bool = False

    def __post_init__(self) -> None:
        _demand_within("max_tokens", self.max_tokens, 1, MOST_TOKENS)


@dataclass(frozen=True)
class Filling:
    """How an encoder-decoder fills the gaps of a text.

    ``gaps`` is one of :data:`GAPS`: ``sentinels`` (T5: what fills a gap is written behind its sentinel) or ``mask``
    (BART: the whole text is written anew). ``longest``: the most tokens that fill a gap.
    """

    gaps: str
    longest: int

    def __post_init__(self) -> None:
        _demand_one_of("gaps", self.gaps, GAPS)
        _demand_within("longest", self.longest, 1, MOST_FILLING)


@dataclass(frozen=True)
class Prompt:
    """How a prompt is put before a generating model.

    ``format`` is one of :data:`FORMATS`; ``template`` holds ``{prompt}`` once; ``chat_template`` is the
    Jinja template that was trained with, when it isn't the tokenizer's own. ``chat_template_kwargs`` are told to the
    template by name, such as ``enable_thinking``.
    """

    format: str = "plain"
    template: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _demand_one_of("format", self.format, FORMATS)
        if self.chat_template_kwargs is not None and (problem := template_kwargs_problem(self.chat_template_kwargs)):
            raise ValueError(f"chat_template_kwargs: {problem}")
        if self.template is not None and self.template.count("{prompt}") != 1:
            raise ValueError(f"template: expected a text with {{prompt}} in it once, found {self.template!r:.200}")


@dataclass(frozen=True)
class Generation:
    """How texts were generated when the adapter was measured, greedily or by beams; transformers' names and meanings.

    ``predict`` and ``generate`` do the same unless a call says otherwise.
    """

    max_new_tokens: int
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        _demand_within("max_new_tokens", self.max_new_tokens, 1, MOST_TOKENS)
        _demand_within("num_beams", self.num_beams, 1, MOST_BEAMS)
        _demand_within("length_penalty", self.length_penalty, -MOST_PENALTY, MOST_PENALTY)
        _demand_within("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, MOST_TOKENS)


@dataclass(frozen=True)
class Numerics:
    """The arithmetic that golden logits were computed with; they are comparable only where all of it is equal."""

    quantization: str = "none"
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Manifest:
    """The content of ``lorary.json``.

    ``thresholds``: where a row may have several labels, from which score on it has each of ``labels``; None: 0.5.
    ``added_tokens`` were added to the base's vocabulary, in this order; the tokenizer beside the weights has them.
    """

    task: str
    base: BaseIdentity
    domain: str | None = None
    labels: tuple[str, ...] | None = None
    problem_type: str | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    prompt: Prompt | None = None
    pooling: Pooling | None = None
    generation: Generation | None = None
    answering: Answering | None = None
    thresholds: tuple[float, ...] | None = None
    added_tokens: tuple[str, ...] | None = None
    filling: Filling | None = None
    numerics: Numerics = field(default_factory=Numerics)
    golden_rows: tuple[tuple[int, ...], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _demand_one_of("task", self.task, TASKS)
        if self.problem_type is not None:
            _demand_one_of("problem_type", self.problem_type, (SINGLE_LABEL, MULTI_LABEL, REGRESSION))

    def semantic(self) -> dict[str, Any]:
        """The part that belongs to the digest, as plain JSON values."""
        values = asdict(replace(self, golden_rows=(), provenance={}))  # which may be long
        return {
            "task": self.task,
            "labels": list(self.labels) if self.labels is not None else None,
            "problem_type": self.problem_type,
            "base_fingerprint": self.base.fingerprint,
            **_used({name: values[name] for name in ("prompt", *_USED_IN_DIGEST)}),
        }

    def to_json(self) -> str:
        """The text of ``lorary.json``: sorted keys, two spaces, a final newline."""
        values = _used(asdict(self))
        newest = max((since for name, since in _SINCE.items() if _holds(values, name)), default=1)
        return json.dumps({"format": newest, **values}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> Path:
        """Write ``lorary.json`` into ``folder`` and return its path."""
        path = folder / MANIFEST_NAME
        path.write_text(self.to_json(), encoding="utf-8")
        return path


def _demand_within(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise ValueError(f"{name}: expected a number from {least} to {most}, found {value}")


def _demand_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected {', '.join(known)}, found {value!r}")


def _used(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields of :data:`_SINCE` that are off (null)."""
    return {
        name: _kept(value, f"{name}.") if name in ("preprocessing", "prompt") and value is not None else value
        for name, value in _kept(values, "").items()
    }


def _kept(values: Mapping[str, Any], above: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None or above + name not in _SINCE}


def _holds(values: Mapping[str, Any], dotted: str) -> bool:
    *above, name = dotted.split(".")
    for part in above:
        values = values[part] or {}
    return name in values
