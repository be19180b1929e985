"""Settings of a recipe that contradict each other, and files that aren't there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorary.hub.errors import InvalidReferenceError
from lorary.hub.reference import check_name, normalise_domain, parse_reference
from lorary.training.recipe.check_method import method_problems
from lorary.training.recipe.check_rewriting import chat_problems, rewriting, template_problems
from lorary.training.recipe.corpus import corpus_problems, is_text, takes_text
from lorary.training.recipe.data_files import DATA_SUFFIXES, LABELLED_LINES, is_data_file, kind_of, refusal
from lorary.training.recipe.embedding import embedding_problems
from lorary.training.recipe.explain import where
from lorary.training.recipe.labels import label_problems
from lorary.training.recipe.manner import manner_problems
from lorary.training.recipe.methods import PEFT_METHODS
from lorary.training.recipe.new_tokens import token_problems
from lorary.training.recipe.place import place_problems
from lorary.training.recipe.raw import RawRecipe, no_such_file, section
from lorary.training.recipe.tasks import TASK_FACTS
from lorary.training.recipe.windows import window_problems


def contradictions(values: Mapping[str, Any], raw: RawRecipe, already: Sequence[str]) -> list[str]:
    """Settings that can't go together, and files that aren't there; a key in ``already`` isn't reported again."""
    found = []
    for check in _CHECKS:
        for dotted, message in check(values):
            if not any(f"{dotted}: " in problem for problem in already):
                found.append(f"{where(raw, dotted)}{dotted}: {message}")
    return found


Problems = Iterator[tuple[str, str]]


def _names(values: Mapping[str, Any]) -> Problems:
    checks: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("name", check_name),
        ("domain", normalise_domain),
        ("alias", lambda text: check_name(text, "alias")),
    )
    for key, check in checks:
        value = values.get(key)
        if isinstance(value, str) and value:
            try:
                check(value)
            except InvalidReferenceError as error:
                yield key, str(error)


def _start(values: Mapping[str, Any]) -> Problems:
    """What an adapter starts from; its rank, alpha and targets are held against the recipe's when it is read."""
    strategy, parent = values.get("strategy", "fine-tune"), values.get("from")
    if strategy == "intermediate" and parent is None:
        yield "from", "missing; strategy 'intermediate' starts from a domain adapter, such as legal-corpus@2"
    if values.get("start") is not None and parent is None:
        yield "start", "says how to start from another adapter, which `from` names; name one, or leave it out"
    if strategy == "direct" and parent is not None:
        yield "from", "strategy 'direct' measures the base as it is, so nothing starts from an adapter; leave it out"
    if parent is not None:
        yield from _inherited(values)
    if isinstance(parent, str) and parent:
        try:
            parse_reference(parent)
        except InvalidReferenceError as error:
            yield "from", str(error)


def _inherited(values: Mapping[str, Any]) -> Problems:
    """Settings of a fresh adapter where there is none, or where what is stacked on it would change its meaning."""
    method, lora = values.get("method"), section(values, "lora")
    if method in PEFT_METHODS:
        yield "method", f"{method!r} can't start from another adapter; only low-rank weights are continued or stacked"
    if lora.get("parameters") is not None:
        yield "lora.parameters", "adapters of parameters can't start from another one; leave it out"
    if values.get("start") == "stack":
        if method == "dora":
            yield "method", "'dora' can't be stacked, since its magnitudes are relative to the base alone; use lora"
        return
    for key in ("init", "exclude", "layers"):
        if lora.get(key) not in (None, "default"):
            yield f"lora.{key}", "the weights that are continued have it settled; leave it out, or use start: stack"


def _repeated(values: Mapping[str, Any]) -> Problems:
    training, data = section(values, "training"), section(values, "data")
    seeds, folds = training.get("seeds", 1), training.get("folds")
    if isinstance(seeds, int) and seeds > 1 and folds is not None:
        yield "training.folds", f"each fold is a run of its own, and training.seeds asks for {seeds} runs; use one"
    if values.get("strategy") == "direct" and (folds is not None or seeds != 1):
        where = "training.folds" if folds is not None else "training.seeds"
        yield where, "strategy 'direct' trains nothing, so there is nothing to repeat; leave it out"
    seed = training.get("seed", 0)
    if isinstance(seeds, int) and isinstance(seed, int) and seed + seeds > 2**32:
        yield "training.seeds", f"the seeds from {seed} on go beyond 2**32; begin with a smaller training.seed"
    if folds is not None and data.get("test_size") is not None:
        yield "data.test_size", "with training.folds every row is held out once; leave one of them out"


def _columns(values: Mapping[str, Any]) -> Problems:
    task, columns = values.get("task"), section(section(values, "data"), "columns")
    roles = frozenset(role for role, column in columns.items() if column is not None)
    if section(values, "data").get("label_columns"):
        roles |= {"label"}
    facts = TASK_FACTS.get(str(task))
    if facts is None or not roles or facts.takes(roles):
        return
    forms = " or ".join(", ".join(sorted(form)) for form in facts.forms)
    forms += f", and {' and '.join(sorted(facts.beside))} beside any but text" if facts.beside else ""
    for role in sorted(roles - facts.roles):
        yield f"data.columns.{role}", f"{task} has no {role!r} column; expected {forms}"
    if roles <= facts.roles:
        yield "data.columns", f"{task} takes {forms}, found {', '.join(sorted(roles))}"


def _files(values: Mapping[str, Any]) -> Problems:
    data = section(values, "data")
    for key in ("train", "test", "validation"):
        text = data.get(key)
        if not isinstance(text, str) or not text:
            continue
        path = Path(text).expanduser()
        if is_text(text):
            classified = (
                path.is_dir() or kind_of(path) in LABELLED_LINES
            )  # a folder for each label, or lines with theirs
            if not takes_text(values) and not (values.get("task") == "text-classification" and classified):
                able = ", ".join(DATA_SUFFIXES)
                yield f"data.{key}", f"{text!r} isn't one of {able}; convert it to one of them: its rows need columns"
            elif not path.exists():
                yield f"data.{key}", no_such_file(text)
        elif is_data_file(text) and not path.exists():
            yield f"data.{key}", no_such_file(text)
        elif problem := refusal(text):
            yield f"data.{key}", problem
        elif path.is_dir() and takes_text(values) and not any(path.iterdir()):
            yield f"data.{key}", f"{text!r} is an empty folder; expected text files or rows in it"
        elif not path.exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
            yield f"data.{key}", f"{text!r} is neither a file nor a dataset id such as 'user/dataset'"


def _splits(values: Mapping[str, Any]) -> Problems:
    data = section(values, "data")
    trained = data.get("train"), data.get("train_split") or "train"
    training = section(values, "training")
    # The run on all rows that follows folds has none to stop by, whatever its recipe.yaml names.
    idle = training.get("early_stopping") == 0 and training.get("folds") is None
    for part, why in (
        ("test", "held-out rows must not be trained on"),
        ("validation", "leave it out: rows to stop early by are split off"),
    ):
        named, split = data.get(part), data.get(f"{part}_split")
        if named is None and split is None:
            continue
        key = f"data.{part}_split" if named is None else f"data.{part}"
        if data.get(f"{part}_size") is not None:
            yield f"data.{part}_size", f"{key} already names the rows; leave one of them out"
        if part == "validation" and idle:
            yield key, "training.early_stopping: 0 leaves these rows without a use; leave one of them out"
        if (named or trained[0], split or trained[1]) == trained:
            yield key, f"the same rows as data.train; {why}"
    train = data.get("train")
    if isinstance(train, str) and (kind_of(Path(train)) in DATA_SUFFIXES or (train and is_text(train))):
        holds_splits = kind_of(Path(train)) == ".json"  # lists of rows by their names
        for key in ("subset", "test_split", "validation_split", "revision"):
            if data.get(key) is not None and not (holds_splits and key.endswith("_split")):
                yield f"data.{key}", f"only a dataset has one; data.train is the file {train!r}"


def _prompt(values: Mapping[str, Any]) -> Problems:
    prompt, task = section(values, "prompt"), values.get("task")
    given = [key for key, value in prompt.items() if value is not None]
    facts = TASK_FACTS.get(str(task))
    if facts is not None and not facts.prompts:
        able = ", ".join(name for name, other in TASK_FACTS.items() if other.prompts)
        for key in given:
            yield f"prompt.{key}", f"only {able} have a prompt; the task is {task}"
        return
    if facts is not None and facts.rewrites:
        return  # its own check says what can't be
    if prompt.get("prefix") is not None:
        yield "prompt.prefix", f"{task} has none; put it into prompt.template"
    columns = section(section(values, "data"), "columns")
    form = prompt.get("format")
    if columns.get("messages") is not None and form not in (None, "chat"):
        yield "prompt.format", f"rows of messages are chats, found {form!r}; leave it out"
    told = sorted(role for role in (facts.beside if facts else ()) if columns.get(role) is not None)
    if told and form not in (None, "chat"):
        yield "prompt.format", f"only a chat template is told of {' and '.join(told)}, found {form!r}; leave it out"
    if columns.get("text") is not None and form not in (None, "plain"):
        yield "prompt.format", f"rows of plain text have no prompt, found {form!r}; leave it out"
    bare = columns.get("text") or (columns.get("chosen") and not columns.get("prompt"))
    chat = columns.get("messages") or told
    form = form or ("chat" if chat else "plain" if bare else "instruction")
    template = prompt.get("template")
    if isinstance(template, str):
        if form != "instruction":
            yield "prompt.template", f"only format 'instruction' has one, the format is {form!r}"
        yield from template_problems(template)
    if prompt.get("learn") is not None and (columns.get("text") or columns.get("chosen")):
        learned = "of running text all is" if columns.get("text") else "of a pair the replies are"
        yield "prompt.learn", f"{learned} learned; leave it out"
    elif prompt.get("learn") == "last" and form != "chat":
        yield "prompt.learn", f"only a chat has a last turn among others, the format is {form!r}; leave it out"
    yield from chat_problems(prompt, form)


def _preference(values: Mapping[str, Any]) -> Problems:
    pairs = section(section(values, "data"), "columns").get("chosen") is not None
    if not pairs:
        for key, value in section(values, "preference").items():
            if value is not None:
                yield f"preference.{key}", "only rows with columns 'chosen' and 'rejected' are preferences"
        return
    if section(values, "training").get("packing"):
        yield "training.packing", "preference pairs aren't packed; leave it out"
    dropout = section(values, "lora").get("dropout")
    if isinstance(dropout, (int, float)) and dropout > 0:
        yield "lora.dropout", "preference pairs are trained without dropout, which would blur their ratio; leave it out"


def _run(values: Mapping[str, Any]) -> Problems:
    training, task, data = section(values, "training"), values.get("task"), section(values, "data")
    facts = TASK_FACTS.get(str(task))
    if facts is not None and task != "text-generation" and training.get("packing"):
        yield "training.packing", f"only text-generation rows can be packed; the task is {task}"
    if facts is not None and not facts.roles & {"label", "tags"} and data.get("labels") is not None:
        yield "data.labels", f"{task} has no labels"
    if training.get("group_by_length") and task == "text-generation" and training.get("packing") is not False:
        yield "training.group_by_length", "rows of text-generation share sequences already; set training.packing: false"
    if training.get("min_steps") is not None and training.get("max_steps") is not None:
        yield "training.min_steps", "training.max_steps says how many steps there are; leave one of them out"
    elif training.get("min_steps") is not None and training.get("packing") is True:
        yield (
            "training.min_steps",
            "with training.packing: true nobody knows the steps of an epoch before the rows are packed; use "
            "training.max_steps, or packing: batch",
        )
    if values.get("device") is not None and values.get("device_map") is not None:
        yield "device_map", "spreads the base over all devices, and device names one; leave one of them out"


def _best_by(values: Mapping[str, Any]) -> Problems:
    """What an epoch is the best one by."""
    training, data, task = section(values, "training"), section(values, "data"), str(values.get("task"))
    if training.get("best_by") != "metric" or task not in TASK_FACTS:
        return
    if not TASK_FACTS[task].scored and section(data, "columns").get("chosen") is None:
        yield "training.best_by", f"epochs of {task} are judged by their loss alone; leave it out"
    elif values.get("strategy") == "direct":
        yield "training.best_by", "strategy 'direct' trains nothing, so no epoch is kept; leave it out"
    for key, size in (
        ("training.early_stopping", training.get("early_stopping")),
        ("data.validation_size", data.get("validation_size")),
    ):
        if size == 0:
            yield "training.best_by", f"'metric' needs validation rows, and {key}: 0 leaves none; leave one of them out"


def _report(values: Mapping[str, Any]) -> Problems:
    trackers = section(values, "report").get("to")
    for name in trackers if isinstance(trackers, (list, tuple)) else ():
        if isinstance(name, str) and name.isidentifier() and find_spec(name) is None:
            yield "report.to", f"{name!r} isn't installed; install it (pip install {name}), or leave it out"


_CHECKS: tuple[Callable[[Mapping[str, Any]], Problems], ...] = (
    _names,
    corpus_problems,
    _start,
    _repeated,
    method_problems,
    token_problems,
    _columns,
    label_problems,
    window_problems,
    embedding_problems,
    place_problems,
    _files,
    manner_problems,
    _splits,
    _prompt,
    _preference,
    rewriting,
    _run,
    _best_by,
    _report,
)
