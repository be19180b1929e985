"""The recipe of a pretraining run: corpus, tokenizer, sizes and run, checked as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorary.hub.errors import InvalidReferenceError, RecipeError
from lorary.hub.reference import check_name
from lorary.training.recipe.corpus import MEAN_SPAN, is_text
from lorary.training.recipe.data_files import DATA_SUFFIXES, TEXT_SUFFIXES, is_data_file, refusal
from lorary.training.recipe.explain import explain, where
from lorary.training.recipe.manner import manner_problems
from lorary.training.recipe.place import demand_homes
from lorary.training.recipe.raw import RawRecipe, in_order, no_such_file, read_recipe, section
from lorary.training.recipe.schema import FLAG_OF

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]

_TOKENIZERS: Mapping[str, tuple[str, ...]] = {
    "llama": ("bpe",),
    "bert": ("wordpiece", "unigram", "bpe"),
    "t5": ("unigram", "bpe"),
}

_HIDING = ("mlm_probability", "whole_word_mask", "mean_span")
_HIDES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "llama": ("a causal model hides no tokens", ()),
    "bert": ("BERT hides single tokens or words", ("mlm_probability", "whole_word_mask")),
    "t5": ("T5 hides spans of tokens", ("mlm_probability", "mean_span")),
}
"""By architecture what is hidden, and which of the settings of hiding it has."""

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "tiny": {
            "model": {"hidden_size": 128, "layers": 2, "heads": 2, "context": 128},
            "tokenizer": {"vocab_size": 2000},
            "training": {"learning_rate": 2e-3, "batch_size": 32},
        },
        "small": {
            "model": {"hidden_size": 256, "layers": 4, "heads": 4, "context": 256},
            "tokenizer": {"vocab_size": 8000},
            "training": {"learning_rate": 1e-3, "batch_size": 32},
        },
        "base": {
            "model": {"hidden_size": 512, "layers": 8, "heads": 8, "context": 512},
            "tokenizer": {"vocab_size": 16000},
            "training": {"learning_rate": 6e-4, "batch_size": 64},
        },
    }
)
"""Sizes that go together: about 0.7, 5 and 34 million parameters."""


_BERTS_PATIENCE = 10
"""Epochs. An encoder learns how frequent tokens are, then hardly anything for several epochs, and then a lot."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class CorpusData(_Section):
    """The corpus: a text file or a folder of them, or JSONL, CSV, TSV or Parquet with the column ``text``.

    ``test`` is held out, or ``test_size`` of the documents; ``validation_size`` of the rest decides which epoch is kept
    (0: the last one). ``encoding`` is that of files which aren't in UTF-8.
    """

    train: Text
    test: Text | None = None
    test_size: Share | None = None
    validation_size: Annotated[float, Field(ge=0, lt=1)] = 0.05
    text: Text = "text"
    sample_by: Literal["document", "paragraph", "line"] | None = None
    encoding: Text = "utf-8"


class TokenizerSettings(_Section):
    """The tokenizer: byte-level ``bpe`` (every text), ``wordpiece`` (BERT's) or ``unigram`` (SentencePiece's).

    ``vocab_size`` is the most tokens that it gets; ``lowercase`` also takes accents off where it is wordpiece.
    """

    kind: Literal["bpe", "wordpiece", "unigram"]
    vocab_size: Annotated[int, Field(ge=300, le=500_000)]
    lowercase: bool = False


class ModelSizes(_Section):
    """The model's sizes; ``context`` is the most tokens that it takes. ``intermediate_size`` is the feed-forward's.

    ``layers`` are those of the encoder, and of the decoder, where a model has both.
    """

    hidden_size: Annotated[int, Field(ge=8)]
    layers: Positive
    heads: Positive
    intermediate_size: Positive | None = None
    context: Annotated[int, Field(ge=16)]


class Pretraining(_Section):
    """The run, in full precision. ``early_stopping`` counts epochs without a better validation loss (bert's default is
    10); 0 turns it off.

    ``checkpoint_steps`` puts checkpoints inside an epoch; there is one after each epoch, and after ten minutes without
    one, in any case.
    """

    epochs: Annotated[float, Field(gt=0)] = 10.0
    max_steps: Positive | None = None
    batch_size: Positive
    gradient_accumulation: Positive = 1
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    early_stopping: Annotated[int, Field(ge=0)] = 3
    checkpoint_steps: Positive | None = None
    mlm_probability: Share | None = None
    whole_word_mask: bool = False
    mean_span: Annotated[float, Field(ge=1, le=100)] | None = None


class PretrainRecipe(_Section):
    """Every setting of a pretraining run. Made by :meth:`load` or :meth:`from_flags`, as a training's recipe is.

    ``architecture`` is ``llama`` (a causal model: text generation), ``bert`` (an encoder: tasks that read) or ``t5``
    (an encoder-decoder: tasks that make one text of another, and classification).
    ``output`` is the run's folder for as long as it isn't finished; the base itself is kept with the catalogue.
    """

    name: Text
    strategy: Literal["pretrain"] = "pretrain"
    architecture: Literal["llama", "bert", "t5"]
    preset: Literal["tiny", "small", "base"] = "tiny"
    data: CorpusData
    tokenizer: TokenizerSettings
    model: ModelSizes
    training: Pretraining
    device: Text | None = None
    output: Text | None = None

    @classmethod
    def load(
        cls, path: str | Path, overrides: Iterable[str] = (), flags: Mapping[str, Any] | None = None
    ) -> PretrainRecipe:
        """Read a recipe file; arguments and errors as :meth:`lorary.training.recipe.Recipe.load`."""
        return cls._build(_put(read_recipe(path), flags or {}).with_overrides(overrides))

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any], overrides: Iterable[str] = ()) -> PretrainRecipe:
        """Build a recipe from dotted keys and their values, without a file.

        Raises:
            RecipeError: as :meth:`load`.
        """
        return cls._build(_put(RawRecipe("recipe"), flags).with_overrides(overrides))

    @classmethod
    def _build(cls, raw: RawRecipe) -> PretrainRecipe:
        demand_homes(raw)
        values = _with_defaults(raw.values)
        recipe: PretrainRecipe | None = None
        problems: list[str] = []
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            problems = explain(error, raw, cls)
        problems += [
            f"{where(raw, dotted)}{dotted}: {message}"
            for dotted, message in _contradictions(values)
            if not any(f"{dotted}: " in problem for problem in problems)
        ]
        if problems or recipe is None:
            raise RecipeError(raw.source, in_order(problems))
        return recipe

    def to_yaml(self) -> str:
        """The whole recipe, defaults included."""
        return yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)

    def given(self) -> str:
        """What goes on with the run: all of it, since nothing here is inherited."""
        return self.to_yaml()


def _put(raw: RawRecipe, flags: Mapping[str, Any]) -> RawRecipe:
    problems = [raw.put(dotted, value, FLAG_OF.get(dotted, f"--{dotted}")) for dotted, value in flags.items()]
    if any(problems):
        raise RecipeError(raw.source, [problem for problem in problems if problem])
    return raw


def _with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put in what depends on other settings: the preset's sizes, the architecture's tokenizer, the held-out share."""
    filled = dict(values)
    preset = PRESETS.get(str(values.get("preset", "tiny")), PRESETS["tiny"])
    for name, settings in preset.items():
        given = values.get(name)
        if given is None or isinstance(given, Mapping):
            filled[name] = {**settings, **(given or {})}
    kinds = _TOKENIZERS.get(str(values.get("architecture")), ("bpe",))
    if isinstance(filled["tokenizer"], dict):
        filled["tokenizer"].setdefault("kind", kinds[0])
    if isinstance(filled["training"], dict) and values.get("architecture") == "bert":
        filled["training"].setdefault("early_stopping", _BERTS_PATIENCE)
    if isinstance(filled["training"], dict) and values.get("architecture") in ("bert", "t5"):
        filled["training"].setdefault("mlm_probability", 0.15)
        if values["architecture"] == "t5":
            filled["training"].setdefault("mean_span", MEAN_SPAN)
    data = values.get("data")
    if isinstance(data, Mapping) and data.get("test") is None:
        filled["data"] = {"test_size": 0.1, **data}
    return filled


def _contradictions(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    data, model, training = (section(values, key) for key in ("data", "model", "training"))
    architecture, kind = values.get("architecture"), section(values, "tokenizer").get("kind")
    if isinstance(values.get("name"), str) and values["name"]:
        try:
            check_name(values["name"])
        except InvalidReferenceError as error:
            yield "name", str(error)
    for key in ("train", "test"):
        yield from _corpus(key, data.get(key))
    yield from manner_problems(values)
    if data.get("test") is not None and data.get("test_size") is not None:
        yield "data.test_size", "data.test already names the held-out text; leave one of them out"
    if data.get("test") is not None and data.get("test") == data.get("train"):
        yield "data.test", "the same text as data.train; held-out text must not be trained on"
    hidden, heads = model.get("hidden_size"), model.get("heads")
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        if hidden % heads:
            yield "model.hidden_size", f"expected a multiple of model.heads, which is {heads}, found {hidden}"
        elif architecture == "llama" and (hidden // heads) % 2:
            yield "model.hidden_size", f"llama's heads need an even width, found {hidden} / {heads}"
    if architecture in _TOKENIZERS and kind not in _TOKENIZERS[str(architecture)]:
        able = " or ".join(_TOKENIZERS[str(architecture)])
        yield "tokenizer.kind", f"{architecture} gets {able}, found {kind!r}"
    size = section(values, "tokenizer").get("vocab_size")
    if architecture == "t5" and isinstance(size, int) and 300 <= size < 400:
        yield "tokenizer.vocab_size", f"t5's sentinels are 100 of them; expected at least 400, found {size}"
    what, own = _HIDES.get(str(architecture), ("", _HIDING))
    for key in _HIDING:
        if training.get(key) and key not in own:
            yield f"training.{key}", f"{what}; the architecture is {architecture}"


def _corpus(key: str, text: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(text, str) or not text:
        return
    running, path = is_text(text), Path(text).expanduser()
    if is_data_file(text) and not path.exists():
        yield f"data.{key}", no_such_file(text)
    elif not running and (problem := refusal(text, (*DATA_SUFFIXES, *TEXT_SUFFIXES))):
        yield f"data.{key}", problem
