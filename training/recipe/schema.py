"""Every setting of a training run, by section."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorary.hub.errors import RecipeError
from lorary.hub.manifest import Generation
from lorary.training.recipe.check import contradictions
from lorary.training.recipe.defaults import with_defaults
from lorary.training.recipe.explain import explain
from lorary.training.recipe.methods import LORA_METHODS
from lorary.training.recipe.raw import RawRecipe, in_order, read_recipe

Task = Literal[
    "text-classification", "token-classification", "question-answering", "text-generation", "fill-mask",
    "feature-extraction", "summarization", "translation",
]  # fmt: skip
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Strategy = Literal["direct", "fine-tune", "continual", "intermediate"]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    # Strict: a quoted number or a bare `yes` is a slip that should be named, not guessed at.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Columns(_Section):
    """Which column plays which role; a role that a task doesn't have is left out."""

    text: Text | None = None
    text_pair: Text | None = None
    label: Text | None = None
    tokens: Text | None = None
    tags: Text | None = None
    prompt: Text | None = None
    input: Text | None = None
    completion: Text | None = None
    messages: Text | None = None
    chosen: Text | None = None
    rejected: Text | None = None
    summary: Text | None = None
    source: Text | None = None
    target: Text | None = None
    question: Text | None = None
    context: Text | None = None
    positive: Text | None = None
    negative: Text | None = None
    score: Text | None = None
    answers: Text | None = None
    answer: Text | None = None
    answer_start: Text | None = None

    def named(self) -> dict[str, str]:
        """The roles that are in use, with their columns."""
        return {role: column for role, column in self.model_dump().items() if column is not None}


class Data(_Section):
    """Where the rows are: a JSONL, CSV or Parquet file, a dataset's folder, or a dataset id on the Hub.

    Running text may also be a .txt or .md file or a folder of them; ``sample_by`` says what of it is a document: a
    whole file (``document``), what stands between blank lines (``paragraph``), or a ``line``.

    ``test`` names held-out rows; without it ``test_size`` (a share) is split off, seeded and stratified. ``validation``
    or ``validation_size`` are the rows that early stopping looks at, so that the held-out rows stay unseen.
    ``label_columns`` are columns of 0 and 1, one for each label, in place of a column of labels.
    ``source_lang`` and ``target_lang``: codes where the base's tokenizer has them, else names that the prompt uses.
    ``broken_tags``: sentences whose tags break their scheme (an I- without its B-) are counted and kept, or an error.
    ``too_long``: rows of more than ``training.max_length`` tokens are cut, left out of the training rows, or an error.
    """

    train: Text
    test: Text | None = None
    validation: Text | None = None
    test_size: Share | None = None
    validation_size: Annotated[float, Field(ge=0, lt=1)] | None = None
    columns: Columns = Columns()
    labels: tuple[Text, ...] | None = None
    label_columns: tuple[Text, ...] | None = None
    source_lang: Text | None = None
    target_lang: Text | None = None
    broken_tags: Literal["keep", "error"] | None = None
    too_long: Literal["truncate", "drop", "error"] = "truncate"
    subset: Text | None = None
    train_split: Text = "train"
    test_split: Text | None = None
    revision: Text | None = None
    sample_by: Literal["document", "paragraph", "line"] | None = None


class Lora(_Section):
    """The adapter (Hu et al. 2021).

    ``targets`` is ``all-linear``, ``attention``, ``mlp``, a list of names, or a regex; ``exclude`` (names or a regex)
    takes some of them out, and ``layers`` keeps those of a few layers: numbers (negative ones from the end),
    ``first N`` or ``last N``. ``init`` is what A and B begin as
    (:data:`~lorary.training.recipe.methods.INITIALISATIONS`).
    """

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: Text | tuple[Text, ...] = "all-linear"
    exclude: Text | tuple[Text, ...] | None = None
    layers: Text | tuple[int, ...] | None = None
    init: Text = "default"
    rank_pattern: dict[str, Positive] = {}
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}


class Training(_Section):
    """The run. Lengths are in tokens; ``warmup`` is a share of all steps. Of question answering alone: ``stride`` is by
    how much the windows of a long context overlap, ``max_answer_length`` the longest answer.

    Summaries and translations have a length of their own, ``max_target_length``; ``max_length`` is that of their texts.

    ``weight_decay`` leaves biases and norms alone. ``class_weights`` weigh the labels in the loss: ``balanced``
    (against their share of the training rows) or a table. ``label_smoothing`` (Szegedy et al. 2016) is the share of a
    target that all labels get. ``classifier_dropout`` is that of the head; None leaves the base's.
    ``early_stopping`` counts epochs without a better loss on the validation rows; 0 turns it off. ``packing`` puts rows
    of text generation into shared sequences: ``batch`` (the default, where the model keeps them apart) within a batch,
    which changes nothing but the time; true up to ``max_length``, so that ``batch_size`` counts such sequences; false
    pads each row. ``group_by_length`` puts rows of like length into a batch: less padding, other batches.
    ``checkpoint_steps`` puts checkpoints inside an epoch; there is one after each epoch, and after ten
    minutes without one, in any case.
    ``lora_plus_ratio`` is how many times larger B's learning rate is than A's (LoRA+, Hayou et al. 2024).
    ``mlm_probability`` is the share of tokens that fill-mask hides; with ``whole_word_mask`` it is the share of words,
    of which all pieces are hidden together.
    """

    epochs: Annotated[float, Field(gt=0)]
    max_steps: Positive | None = None
    batch_size: Positive
    gradient_accumulation: Positive = 1
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    classifier_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    max_length: Annotated[int, Field(ge=8)]
    max_target_length: Annotated[int, Field(ge=2)] | None = None
    stride: Annotated[int, Field(ge=0)] | None = None
    max_answer_length: Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    early_stopping: Annotated[int, Field(ge=0)] = 3
    lora_plus_ratio: Annotated[float, Field(ge=1)] | None = None
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    packing: bool | Literal["batch"] | None = None
    gradient_checkpointing: bool = False
    group_by_length: bool = False
    checkpoint_steps: Positive | None = None
    mlm_probability: Share | None = None
    whole_word_mask: bool = False


class EmbeddingSettings(_Section):
    """How a text becomes a vector, and how training compares vectors; of feature extraction alone.

    ``pooling`` is the ``mean`` over a text's tokens, its first token (``cls``) or its ``last`` one: by default the mean
    on an encoder, the last token on a causal model. ``normalize`` brings what ``predict`` gives to length 1.
    ``temperature`` is what training divides cosines by.
    """

    pooling: Literal["mean", "cls", "last"] | None = None
    normalize: bool | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None


class PromptSettings(_Section):
    """How a prompt is put before the model; by default as the columns suggest (see ``format``).

    ``learn``: what the loss is taken on: ``replies`` (the default: completions, and each of the assistant's turns),
    ``last`` (a chat's last turn alone) or ``all`` (the prompts too).
    ``prefix`` stands before the text to summarize or to translate ("summarize: " for a T5); "" for none.
    """

    prefix: str | None = None

    format: Literal["instruction", "chat", "plain"] | None = None
    template: Text | None = None
    chat_template: Text | None = None
    learn: Literal["replies", "last", "all"] | None = None


class PreferenceSettings(_Section):
    """Training on preference pairs by direct preference optimisation (Rafailov et al. 2023).

    ``beta`` is how strongly the adapter is held to the model that it starts from; ``loss`` is ``sigmoid`` (the
    paper's), ``hinge`` (SLiC, Zhao et al. 2023) or ``ipo`` (Azar et al. 2023, with beta in tau's place).
    """

    beta: Annotated[float, Field(gt=0)] | None = None
    loss: Literal["sigmoid", "hinge", "ipo"] | None = None


class GenerationSettings(_Section):
    """How texts are generated when a run is measured; ``predict`` does the same. Greedy unless ``num_beams`` says more.

    ``rows``: texts are generated for as many held-out rows at most, evenly spread; the loss is taken on all.
    ``max_new_tokens``: ``training.max_target_length`` unless given.
    """

    rows: Annotated[int, Field(ge=0)] | None = None
    max_new_tokens: Positive | None = None
    num_beams: Positive | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] | None = None

    def settled(self, max_new_tokens: int) -> Generation:
        """As the manifest holds it, with so many tokens unless the recipe says how many."""
        given = self.model_dump(exclude_none=True, exclude={"rows"})
        return Generation(**{"max_new_tokens": max_new_tokens, **given})


class ReportSettings(_Section):
    """The run's report. ``rows`` is how many of the worst held-out rows it shows: they are your data, in plain text.

    ``to`` names trackers that follow the run live; each has to be installed.
    """

    write: bool = True
    rows: Annotated[int, Field(ge=0, le=1000)] = 20
    to: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = ()


class Recipe(_Section):
    """Every setting of a run. Made by :meth:`load` or :meth:`from_flags`, which report all mistakes at once.

    ``strategy``: ``direct`` measures the base as it is; ``fine-tune`` trains on the task's rows; ``continual`` goes on
    with pretraining on unlabelled text (Gururangan et al. 2020); ``intermediate`` makes a task adapter that starts from
    a domain adapter (Phang et al. 2018).
    ``from_`` (written ``from``) names the adapter to start from, a reference or a folder. ``start`` says how:
    ``continue`` trains its low-rank weights further, at its rank, alpha and targets; ``stack`` leaves them as they are
    and trains new ones beside them, saved as one adapter whose ranks add up.

    ``lora.model_fields_set`` and the recipe's own are what was given, without defaults.

    ``lora`` holds the settings of LoRA and its kin, ``peft`` those of any other method, by PEFT's own names.
    """

    name: Text
    domain: Text
    task: Task
    problem_type: ProblemType | None = None
    base: Text
    revision: Text | None = None
    strategy: Strategy = "fine-tune"
    from_: Text | None = Field(None, alias="from")
    start: Literal["continue", "stack"] | None = None
    method: Text = "lora"
    quantization: Literal["none", "nf4", "fp4", "int8"] = "none"
    double_quantization: bool | None = None
    data: Data
    lora: Lora = Lora()
    peft: dict[str, Any] = {}
    training: Training
    prompt: PromptSettings = PromptSettings()
    preference: PreferenceSettings = PreferenceSettings()
    generation: GenerationSettings = GenerationSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    report: ReportSettings = ReportSettings()
    output: Text | None = None
    tags: tuple[Text, ...] = ()
    alias: Text | None = None
    device: Text | None = None
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = (), flags: Mapping[str, Any] | None = None) -> Recipe:
        """Read a recipe file.

        Args:
            path: a YAML file.
            overrides: ``key=value`` texts such as ``training.epochs=3``; they win over ``flags`` and the file.
            flags: dotted keys and values, as for :meth:`from_flags`; they win over the file.

        Raises:
            RecipeError: every mistake in it, each with its line, what was found and what is allowed.
        """
        return cls.build(_with_flags(read_recipe(path), flags or {}).with_overrides(overrides))

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
        """Build a recipe from dotted keys and their values (``{"data.train": "train.jsonl"}``), without a file.

        Raises:
            RecipeError: as :meth:`load`.
        """
        return cls.build(_with_flags(RawRecipe("recipe"), flags).with_overrides(overrides))

    @classmethod
    def build(cls, raw: RawRecipe) -> Recipe:
        """Check raw values as a whole, with each task's defaults put in. Raises as :meth:`load`."""
        values = with_defaults(raw.values)
        recipe: Recipe | None = None
        problems: list[str] = []
        try:
            recipe = cls.model_validate(_tuples(values))
        except ValidationError as error:
            problems = explain(error, raw, cls)
        # Contradictions are looked for even in a recipe that has other mistakes: one round of mending is enough.
        problems += contradictions(values, raw, already=problems)
        if problems or recipe is None:
            raise RecipeError(raw.source, in_order(problems))
        given = raw.values.get("lora") or {}
        # So that a setting that contradicts an inherited one can be told from a default that doesn't.
        lora = Lora.model_construct(_fields_set=set(given), **dict(recipe.lora))
        return recipe.model_copy(update={"lora": lora})

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, as YAML that :meth:`load` reads back to an equal one."""
        return yaml.safe_dump(_lists(self.settings()), sort_keys=False, allow_unicode=True)

    def settings(self, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """The whole recipe as plain values, without what its method doesn't use; :meth:`load` reads it back."""
        unused = {"peft"} if self.method in LORA_METHODS else {"lora"}
        return self.model_dump(mode=mode, exclude_none=True, by_alias=True, exclude=unused)

    @property
    def base_quantization(self) -> str:
        """The base's quantization by its one name, as the loader takes it and manifests state it."""
        return f"{self.quantization}-single" if self.double_quantization is False else self.quantization


FLAG_OF: Mapping[str, str] = {
    "base": "--base", "data.train": "--data", "data.test": "--test", "task": "--task", "domain": "--domain",
    "name": "--name", "method": "--method", "quantization": "--quantization", "output": "--output",
    "training.epochs": "--epochs", "lora.rank": "--rank", "training.learning_rate": "--learning-rate",
    "training.seed": "--seed", "device": "--device", "device_map": "--device-map", "alias": "--alias",
    "strategy": "--strategy", "from": "--from", "training.seeds": "--seeds", "training.folds": "--folds",
}  # fmt: skip
"""The command line's flag for each setting that has one of its own; ``--set`` reaches all others."""


def _with_flags(raw: RawRecipe, flags: Mapping[str, Any]) -> RawRecipe:
    problems = [raw.put(dotted, value, FLAG_OF.get(dotted, "given")) for dotted, value in flags.items()]
    if any(problems):
        raise RecipeError(raw.source, [problem for problem in problems if problem])
    return raw


def _tuples(value: Any) -> Any:
    """Lists become tuples, since a frozen recipe holds nothing that can change."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value
