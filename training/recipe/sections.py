"""The sections of a recipe: what each setting is, and which values it takes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lorary.hub.manifest import MOST_BEAMS, MOST_PENALTY, MOST_TOKENS, Generation

Task = Literal[
    "text-classification", "token-classification", "question-answering", "text-generation", "fill-mask",
    "feature-extraction", "summarization", "translation",
]  # fmt: skip
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Strategy = Literal["direct", "fine-tune", "continual", "intermediate"]
Positive = Annotated[int, Field(gt=0)]
Tokens = Annotated[int, Field(gt=0, le=MOST_TOKENS)]
Share = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of a recipe: frozen, with the keys that it names and no others."""

    # Strict: a quoted number or a bare `yes` is a slip that should be named, not guessed at.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Columns(Section):
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
    tools: Text | None = None
    chat_template_kwargs: Text | None = None

    def named(self) -> dict[str, str]:
        """The roles that are in use, with their columns."""
        return {role: column for role, column in self.model_dump().items() if column is not None}


class Data(Section):
    """Where the rows are: a JSONL, CSV, TSV or Parquet file, a dataset's folder, or a dataset id on the Hub.

    Running text may also be a .txt or .md file or a folder of them; any file may be compressed with gzip (.gz).
    ``sample_by`` says what of it is a document: a whole file (``document``), what stands between blank lines
    (``paragraph``), or a ``line``.

    ``test`` names held-out rows; without it ``test_size`` (a share) is split off, seeded and stratified. ``validation``
    or ``validation_size`` are the rows that early stopping looks at, so that the held-out rows stay unseen; by default
    a tenth, where that is enough rows to judge by. Of a dataset, ``test_split`` and ``validation_split`` name them too.
    ``header`` names the columns of a CSV, TSV or CoNLL file that doesn't, or the places of a JSON file's lists;
    ``separator`` stands between the cells of a CSV file, and ``encoding`` is that of a file which isn't in UTF-8.
    ``label_columns`` are columns of 0 and 1, one for each label, in place of a column of labels.
    ``label_separator`` stands between the labels of a row, where its label is a text that holds several.
    ``incomplete``: rows in which a value is missing or empty are an error, or left out and counted; ``unlabelled`` are
    labels that say that a row has none (``-1``, ``-``), and such rows are left out.
    ``sentence_column`` is the column that says which sentence a word is of, where each row is a word and its tag.
    ``source_lang`` and ``target_lang``: codes where the base's tokenizer has them, else names that the prompt uses.
    ``broken_tags``: sentences whose tags break their scheme (an I- without its B-) are counted and kept, or an error.
    ``license`` (as the Hub spells it, such as cc-by-4.0) and ``language`` (a code such as en, or a list) are told of
    the rows in the model card; by default what the README beside them says.
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
    label_separator: Text | None = None
    sentence_column: Text | None = None
    source_lang: Text | None = None
    target_lang: Text | None = None
    header: tuple[Text, ...] | None = None
    separator: Text | None = None
    encoding: Text = "utf-8"
    incomplete: Literal["error", "drop"] = "error"
    unlabelled: tuple[Text | int, ...] | None = None
    broken_tags: Literal["keep", "error"] | None = None
    too_long: Literal["truncate", "drop", "error"] = "truncate"
    subset: Text | None = None
    train_split: Text = "train"
    test_split: Text | None = None
    validation_split: Text | None = None
    revision: Text | None = None
    sample_by: Literal["document", "paragraph", "line"] | None = None
    license: Text | None = None
    language: Text | tuple[Text, ...] | None = None

    @property
    def names_test(self) -> bool:
        """Are the held-out rows named, rather than split off?"""
        return self.test is not None or self.test_split is not None

    @property
    def names_validation(self) -> bool:
        """Are the rows that early stopping looks at named, rather than split off?"""
        return self.validation is not None or self.validation_split is not None


class Lora(Section):
    """The adapter (Hu et al. 2021).

    ``targets`` is ``all-linear``, ``attention``, ``mlp``, a list of names, or a regex; ``exclude`` (names or a regex)
    takes some of them out. ``parameters`` get one too, which no linear layer holds: ``experts`` (all of a mixture's
    fused ones), a list of names, or a regex; ``targets`` may be an empty list then. ``layers`` keeps those of a few
    layers: numbers (negative ones from the end), ``first N`` or ``last N``. ``init`` is what A and B begin as
    (:data:`~lorary.training.recipe.methods.INITIALISATIONS`).
    """

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: Text | tuple[Text, ...] = "all-linear"
    exclude: Text | tuple[Text, ...] | None = None
    parameters: Text | tuple[Text, ...] | None = None
    layers: Text | tuple[int, ...] | None = None
    init: Text = "default"
    rank_pattern: dict[str, Positive] = {}
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}


class TokenSettings(Section):
    """New tokens, whose rows of the embedding (and of an untied output layer) are trained with the adapter.

    ``add``: the tokens, or a file with one a line. ``special``: they are left out of what is read, as markers are;
    by default they are words like others. ``end``: the one of them that ends a text from now on.
    """

    add: Text | tuple[Text, ...] | None = None
    special: bool = False
    end: Text | None = None


class Training(Section):
    """The run. Lengths are in tokens; ``warmup`` is a share of all steps. Of question answering alone: ``stride`` is by
    how much the windows of a long context overlap, ``max_answer_length`` the longest answer.

    Where ``epochs`` are fewer steps than ``min_steps``, there are as many epochs as make these.

    Summaries and translations have a length of their own, ``max_target_length``; ``max_length`` is that of their texts.

    ``weight_decay`` leaves biases and norms alone. ``class_weights`` weigh the labels in the loss: ``balanced``
    (against their share of the training rows) or a table. ``label_smoothing`` (Szegedy et al. 2016) is the share of a
    target that all labels get. ``classifier_dropout`` is that of the head; None leaves the base's.
    ``threshold``, where rows may have several labels, is the score from which on a row has a label: a number, a table
    of some labels' numbers (0.5 for the others), or ``tuned``, each label's own, found on the validation rows.
    ``best_by`` is what the kept epoch is the best one by, on the validation rows: the ``loss``, or the task's main
    ``metric``. ``early_stopping`` counts epochs without a better one; 0 turns it off. ``packing`` puts rows
    of text generation into shared sequences: ``batch`` (the default, where the model keeps them apart) within a batch,
    which changes nothing but the time; true up to ``max_length``, so that ``batch_size`` counts such sequences; false
    pads each row. ``group_by_length`` puts rows of like length into a batch: less padding, other batches.
    ``checkpoint_steps`` puts checkpoints inside an epoch; there is one after each epoch, and after ten
    minutes without one, in any case.
    ``lora_plus_ratio`` is how many times larger B's learning rate is than A's (LoRA+, Hayou et al. 2024).
    ``mlm_probability`` is the share of tokens that fill-mask hides; with ``whole_word_mask`` it is the share of words,
    of which all pieces are hidden together. On an encoder-decoder (T5, BART) spans are hidden, ``mean_span`` tokens
    long on average.
    """

    epochs: Annotated[float, Field(gt=0)]
    min_steps: Positive | None = None
    max_steps: Positive | None = None
    batch_size: Positive
    gradient_accumulation: Positive = 1
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    classifier_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    threshold: Literal["tuned"] | Share | dict[str, Share] | None = None
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    max_length: Annotated[int, Field(ge=8, le=MOST_TOKENS)]
    max_target_length: Annotated[int, Field(ge=2, le=MOST_TOKENS)] | None = None
    stride: Annotated[int, Field(ge=0)] | None = None
    max_answer_length: Tokens | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    early_stopping: Annotated[int, Field(ge=0)] = 3
    best_by: Literal["loss", "metric"] = "loss"
    lora_plus_ratio: Annotated[float, Field(ge=1)] | None = None
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    packing: bool | Literal["batch"] | None = None
    gradient_checkpointing: bool = False
    group_by_length: bool = False
    checkpoint_steps: Positive | None = None
    mlm_probability: Share | None = None
    whole_word_mask: bool = False
    mean_span: Annotated[float, Field(ge=1, le=100)] | None = None


class EmbeddingSettings(Section):
    """How a text becomes a vector, and how training compares vectors; of feature extraction alone.

    ``pooling`` is the ``mean`` over a text's tokens, its first token (``cls``) or its ``last`` one: by default the mean
    on an encoder, the last token on a causal model. ``normalize`` brings what ``predict`` gives to length 1.
    ``temperature`` is what training divides cosines by.
    """

    pooling: Literal["mean", "cls", "last"] | None = None
    normalize: bool | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None


class PromptSettings(Section):
    """How a prompt is put before the model; by default as the columns suggest (see ``format``).

    ``learn``: what the loss is taken on: ``replies`` (the default: completions, and each of the assistant's turns),
    ``last`` (a chat's last turn alone) or ``all`` (the prompts too).
    ``chat_template_kwargs``: what the chat template is told by name, such as ``{enable_thinking: false}``; told again
    whenever the adapter is asked.
    ``prefix`` stands before the text to summarize or to translate ("summarize: " for a T5); "" for none.
    """

    prefix: str | None = None

    format: Literal["instruction", "chat", "plain"] | None = None
    template: Text | None = None
    chat_template: Text | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    learn: Literal["replies", "last", "all"] | None = None


class PreferenceSettings(Section):
    """Training on preference pairs by direct preference optimisation (Rafailov et al. 2023).

    ``beta`` is how strongly the adapter is held to the model that it starts from; ``loss`` is ``sigmoid`` (the
    paper's), ``hinge`` (SLiC, Zhao et al. 2023) or ``ipo`` (Azar et al. 2023, with beta in tau's place).
    """

    beta: Annotated[float, Field(gt=0)] | None = None
    loss: Literal["sigmoid", "hinge", "ipo"] | None = None


class GenerationSettings(Section):
    """How texts are generated when a run is measured; ``predict`` does the same. Greedy unless ``num_beams`` says more.

    ``rows``: texts are generated for as many held-out rows at most, evenly spread; the loss is taken on all.
    ``max_new_tokens``: ``training.max_target_length`` unless given.
    """

    rows: Annotated[int, Field(ge=0)] | None = None
    max_new_tokens: Tokens | None = None
    num_beams: Annotated[int, Field(gt=0, le=MOST_BEAMS)] | None = None
    length_penalty: Annotated[float, Field(ge=-MOST_PENALTY, le=MOST_PENALTY)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None

    def settled(self, max_new_tokens: int) -> Generation:
        """As the manifest holds it, with so many tokens unless the recipe says how many."""
        given = self.model_dump(exclude_none=True, exclude={"rows"})
        return Generation(**{"max_new_tokens": max_new_tokens, **given})


class ReportSettings(Section):
    """The run's report. ``rows`` is how many of the worst held-out rows it shows: they are your data, in plain text.

    ``to`` names trackers that follow the run live; each has to be installed.
    """

    write: bool = True
    rows: Annotated[int, Field(ge=0, le=1000)] = 20
    to: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = ()
