"""Recipes: every mistake at once, with its place, what was found and what is allowed; and nothing heavy imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from lorary.hub.errors import RecipeError
from lorary.training.recipe import Recipe
from lorary.training.recipe.other_names import CALLED, DONE_WITHOUT
from lorary.training.recipe.sections import Task

GOOD = """\
name: tone
domain: finance
task: text-classification
base: org/base
data:
  train: {train}
"""


@pytest.fixture
def write(tmp_path):
    """``write(text)``: a recipe file; ``{train}`` stands for a file of rows that is there."""
    train = tmp_path / "train.jsonl"
    train.write_text('{"text": "a", "label": "b"}\n')

    def write(text: str = GOOD, extra: str = ""):
        path = tmp_path / "recipe.yaml"
        path.write_text(text.replace("{train}", str(train)) + extra)
        return path

    return write


def problems(path, overrides=(), flags=None):
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path, overrides, flags)
    return list(caught.value.problems)


def test_defaults_depend_on_the_task(write):
    recipe = Recipe.load(write())
    assert (recipe.lora.targets, recipe.lora.alpha) == ("all-linear", 2 * recipe.lora.rank)
    assert recipe.data.columns.named() == {"text": "text", "label": "label"}
    assert recipe.data.test_size == 0.2
    generation = Recipe.load(write(), ["task=text-generation"])
    assert generation.training.learning_rate < recipe.training.learning_rate
    assert generation.data.columns.named() == {"prompt": "prompt", "completion": "completion"}


def test_continual_learns_from_running_text(write):
    recipe = Recipe.load(write(), ["task=text-generation", "strategy=continual"])
    assert recipe.data.columns.named() == {"text": "text"}
    assert Recipe.load(write()).strategy == "fine-tune"


def test_a_recipe_is_frozen(write):
    with pytest.raises(ValueError, match="frozen"):
        Recipe.load(write()).name = "other"


def test_yaml_of_a_recipe_reads_back_to_an_equal_recipe(write, tmp_path):
    recipe = Recipe.load(write(), ["lora.targets=[query, value]", "data.labels=['1', '0']", "lora.rank_pattern={q: 2}"])
    path = tmp_path / "again.yaml"
    path.write_text(recipe.to_yaml())
    assert Recipe.load(path) == recipe


def test_a_changed_recipe_is_checked_as_a_whole(write):
    recipe = Recipe.load(write(), ["data.test_size=0.3"])
    changed = recipe.changed({"training.folds": 3, "data.test_size": None})
    assert (changed.training.folds, changed.data.test_size, recipe.training.folds) == (3, None, None)
    assert changed == Recipe.load(write(), ["training.folds=3"])
    with pytest.raises(RecipeError) as caught:
        recipe.changed({"training.folds": 3})
    assert caught.value.problems == (
        "data.test_size: with training.folds every row is held out once; leave one of them out",
    )


def test_flags_alone_make_the_same_recipe_as_a_file(write, tmp_path):
    flags = {"name": "tone", "domain": "finance", "task": "text-classification", "base": "org/base"}
    recipe = Recipe.from_flags({**flags, "data.train": str(tmp_path / "train.jsonl")}, ["training.epochs=2"])
    assert recipe == Recipe.load(write(), ["training.epochs=2"])


def test_overrides_win_over_flags_and_flags_over_the_file(write):
    path = write(extra="training:\n  epochs: 1\n  seed: 1\n  batch_size: 1\n")
    recipe = Recipe.load(path, ["training.epochs=3"], {"training.epochs": 2, "training.seed": 2})
    assert (recipe.training.epochs, recipe.training.seed, recipe.training.batch_size) == (3, 2, 1)


def test_numbers_without_a_point_before_the_exponent_are_numbers(write):
    assert Recipe.load(write(extra="training: {learning_rate: 2e-4}\n")).training.learning_rate == 2e-4


def test_every_mistake_is_listed_at_once_in_the_order_of_the_file(write):
    found = problems(
        write(
            "name: Fin Tone\n"
            "domain: finance\n"
            "task: text-clasification\n"
            "base: 3\n"
            "methd: lora\n"
            "data: {train: {train}, test: gone.jsonl, columns: {txt: x}}\n"
            'lora: {r: 8, dropout: 1.5}\n'
            'training: {epochs: "3", batch_size: 0, scheduler: cosin, packing: maybe}\n'
        ),
        ["training.epoch=3"],
    )  # fmt: skip
    expected = [
        "line 1: name: 'Fin Tone' can't be a name",
        f"line 3: task: expected one of {', '.join(get_args(Task))}, "
        "found 'text-clasification'; did you mean 'text-classification'?",
        "line 4: base: expected a text, found 3; put it in quotes",
        "line 5: methd: unknown key; did you mean 'method'?; allowed here: name, domain,",
        "line 6: data.columns.txt: unknown key; did you mean 'text'?; allowed here: text, text_pair,",
        "line 6: data.test: no such file 'gone.jsonl'",
        "line 7: lora.r: unknown key; here it is called 'lora.rank'",
        "line 7: lora.dropout: expected a number below 1",
        "line 8: training.epochs: expected a number, found '3'",
        "line 8: training.batch_size: expected a number above 0, found 0",
        "line 8: training.scheduler: expected one of linear, cosine, constant, constant_with_warmup, found 'cosin'; "
        "did you mean 'cosine'?",
        "line 8: training.packing: expected true, false or batch, found 'maybe'",
        "--set: training.epoch: unknown key",
    ]
    for line in expected:
        assert any(problem.startswith(line) for problem in found), line
    assert len(found) == len(expected)
    lines = [int(problem.split()[1][:-1]) for problem in found if problem.startswith("line")]
    assert lines == sorted(lines)


# What recipes of other trainers look like, and what each line of them is told.
FOREIGN = """\
base_model: org/base
load_in_4bit: true
adapter: qlora
datasets: [{path: org/rows, type: alpaca}]
val_set_size: 0.05
sequence_len: 2048
lora_target_modules: [q_proj]
micro_batch_size: 2
learning_rate: 2e-4
lr_scheduler: cosine
warmup_steps: 10
save_steps: 100
eval_steps: 100
bf16: auto
optim: adamw_8bit
train_on_inputs: false
resume_from_checkpoint: x
run_name: sql
frobnicate: 1
frobnicate_more: 1
"""
TOLD = """\
base_model: unknown key; here it is called 'base'
load_in_4bit: unknown key; here it is called 'quantization: nf4'
adapter: unknown key; here it is called 'method'
datasets: unknown key; here it is called 'data.train' (a file
val_set_size: unknown key; here it is called 'data.test_size' (rows that are held out
sequence_len: unknown key; here it is called 'training.max_length'
lora_target_modules: unknown key; here it is called 'lora.targets'
micro_batch_size: unknown key; here it is called 'training.batch_size'
learning_rate: unknown key; did you mean 'training.learning_rate'?
lr_scheduler: unknown key; here it is called 'training.scheduler'
warmup_steps: unknown key; here it is called 'training.warmup' (a share
save_steps: unknown key; here it is called 'training.checkpoint_steps'
eval_steps: unknown key; each step is logged, and rows are measured by themselves, so leave it out
bf16: unknown key; here it is called 'dtype: bfloat16'
optim: unknown key; the optimizer is AdamW, so leave it out
train_on_inputs: unknown key; here it is called 'prompt.learn'
resume_from_checkpoint: unknown key; here it is the option '--resume'
run_name: unknown key; here it is called 'name'
frobnicate: unknown key; allowed here: name, domain
frobnicate_more: unknown key
"""


def test_another_trainers_recipe_is_told_line_by_line_what_its_keys_are_called(tmp_path):
    (tmp_path / "foreign.yaml").write_text(FOREIGN)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(tmp_path / "foreign.yaml")
    found = caught.value.problems
    for number, said in enumerate(TOLD.splitlines(), start=1):
        assert found[number - 1].startswith(f"line {number}: {said}")
    # Those that have another name aren't missing, and what is allowed is told once.
    assert [problem.partition(":")[0] for problem in found[20:]] == ["domain", "task"]
    assert str(caught.value).count("allowed here") == 1


def test_each_name_of_other_trainers_leads_somewhere():
    words = [word for names in (*CALLED.values(), *DONE_WITHOUT.values()) for word in names]
    assert len(words) == len(set(words))
    with pytest.raises(RecipeError) as caught:
        Recipe.from_flags(dict.fromkeys(words, 1))
    told = [problem for problem in caught.value.problems if "unknown key; " in problem]
    assert len(told) == len(words)
    assert all("here it is" in problem or "so leave it out" in problem for problem in told)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["strategy=continual"], "strategy: 'continual' goes on with pretraining, whose task is text-generation"),
        (
            ["strategy=continual", "task=text-generation", "data.columns={completion: c}"],
            "data.columns.completion: strategy 'continual' learns from running text alone",
        ),
        (["strategy=continue"], "strategy: expected one of .*; did you mean 'continual'"),
        (["method=qlora", "quantization=none"], "quantization: method 'qlora' means a base quantized to nf4"),
        (["method=qlora", "quantization=int8"], "use method 'lora' with quantization 'int8'"),
        (["data.columns.prompt=p"], "data.columns.prompt: text-classification has no 'prompt' column"),
        (["task=token-classification", "data.columns={text: t}"], "data.columns.text: token-classification has no"),
        (["task=text-generation", "data.columns={messages: m, prompt: p}"], "data.columns: text-generation takes"),
        (["data.test={train}"], "data.test: the same rows as data.train"),
        (["data.validation={train}"], "data.validation: the same rows as data.train"),
        (
            ["data.validation={other}", "training.early_stopping=0"],
            "data.validation: training.early_stopping: 0 leaves these rows without a use",
        ),
        (["data.test={other}", "data.test_size=0.2"], "data.test_size: data.test already names the rows"),
        (
            ["data.train=org/rows", "data.test_split=train", "data.validation_split=train"],
            "(?s)data.test_split: the same rows as data.train.*data.validation_split: the same rows as data.train",
        ),
        (
            ["data.train=org/rows", "data.validation_split=dev", "data.validation_size=0.1"],
            "data.validation_size: data.validation_split already names the rows",
        ),
        (["data.validation_split=dev"], "data.validation_split: only a dataset has one; data.train is the file"),
        (["data.test_size=1.0"], "data.test_size: expected a number below 1"),
        (["training.threshold=2"], "training.threshold: expected a number below 1"),
        (["training.threshold={a: 2}"], "training.threshold: expected a number below 1"),
        (["training.threshold=tune"], "threshold: expected tuned, a number or keys and values below it, found 'tune'"),
        (["training.class_weights=2"], "class_weights: expected balanced or keys and values below it, found 2"),
        (["training.class_weights={a: -1}"], "class_weights: expected a number above 0.*, found -1"),
        (["data.subset=en"], "data.subset: only a dataset has one; data.train is the file"),
        (
            ["data.train=https://example.com/rows.csv"],
            "'https://example.com/rows.csv' is an address, expected a file or",
        ),
        (
            ["data.train=rows.md"],
            "'rows.md' isn't one of .jsonl, .json, .csv, .tsv, .parquet, .conll, .label; convert it",
        ),
        (["data.train=some words"], "is neither a file nor a dataset id"),
        (["data.train=nowhere/rows.jsonl"], "there is no folder 'nowhere'"),
        (
            ["prompt.template='{prompt}'"],
            "prompt.template: only text-generation, .* have a prompt; the task is text-class",
        ),
        (["task=text-generation", "prompt.template=Answer"], r"expected a text with \{prompt\} in it once"),
        (["task=text-generation", "prompt.template='{prompt} {x}'"], r"expected a text with \{prompt\} in it once"),
        (
            ["task=text-generation", "data.columns={messages: m}", "prompt.format=plain"],
            "prompt.format: rows of messages are chats",
        ),
        (["task=text-generation", "prompt.chat_template=x"], "prompt.chat_template: only format 'chat' has one"),
        (["task=text-generation", "data.labels=[a]"], "data.labels: text-generation has no labels"),
        (["training.packing=true"], "training.packing: only text-generation rows can be packed"),
        (["lora.targets=all-linaer"], "did you mean 'all-linear'"),
        (["lora.targets=q_proj"], r"found 'q_proj'; a list of one name is \[q_proj\]"),
        (
            ["data=rows.jsonl"],
            r"data: expected keys and values below it, found 'rows.jsonl'; data.train names the rows",
        ),
        (["lora.targets='.*(q'"], "isn't a regular expression"),
        (["lora.targets=[]"], "the list is empty"),
        (["alias='3'"], "alias: '3' can't be an alias"),
        (["domain='--'"], "domain: '--' can't be a domain"),
        (["output={folder}"], "output: .* is there already"),
        (["output=new/.."], "output: .* is there already"),
        (["lora.use_rslora=true"], "here it is called 'method: rslora'"),
        (["epochs=3"], "did you mean 'training.epochs'"),
        (["training=3"], "training: expected keys and values below it, found 3"),
        (["training.learning_rate=.inf"], "training.learning_rate: expected a"),
        (["training.weight_decay=.inf"], "training.weight_decay: expected a finite number, found inf"),
        (["lora.alpha=.nan"], "lora.alpha: expected a finite number, found nan"),
        (["method=vera", "peft.d_initial=.inf"], "peft.d_initial: expected a finite number, found inf"),
        (["lora.rank=8.0"], "lora.rank: expected a whole number, found 8.0"),
        (["data.labels=[yes, no]"], "data.labels: expected a text, found true; put it in quotes"),
    ],
)
def test_contradictions_and_wrong_values_are_named(settings, message, write, tmp_path):
    path = write()
    (tmp_path / "other.jsonl").write_text("{}\n")
    stands = {"{train}": tmp_path / "train.jsonl", "{other}": tmp_path / "other.jsonl", "{folder}": tmp_path}
    for word, value in stands.items():
        settings = [setting.replace(word, str(value)) for setting in settings]
    with pytest.raises(RecipeError, match=message):
        Recipe.load(path, settings)


def test_qlora_means_nf4(write):
    assert Recipe.load(write(), ["method=qlora"]).quantization == "nf4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- a\n- b\n", "expected keys and values"),
        ("just words", "expected keys and values"),
        ("name: a\nname: b\n", "line 2: name: given twice, first on line 1"),
        ("data:\n  train: a\n  train: b\n", "line 3: data.train: given twice, first on line 2"),
        ("name: a\n\tdomain: b\n", "line 2: a tab; YAML is indented with spaces"),
        ("name: [a\n", "not valid YAML"),
        ("name: a: b\n", "line 1: not valid YAML"),
        ("name: !!python/object/apply:os.system ['true']\n", "is refused: recipes hold plain values"),
        (
            "a: b\nname: 2026-13-45\n",
            "line 2: not valid YAML: '2026-13-45' can't be read as timestamp (month must be in 1..12",
        ),
        ("name: !!bool x\n", "line 1: not valid YAML: 'x' can't be read as bool ('x'); a text stands in quotes"),
        ("name: !!timestamp x\n", "line 1: not valid YAML: 'x' can't be read as timestamp ("),
        ("training: {seed: " + "9" * 5000 + "}\n", "9 can't be read as int (Exceeds the limit (4300 digits)"),
        ("1: a\n", "line 1: expected a text as key, found '1'"),
        ("on: a\n", "line 1: expected a text as key, found 'on'"),
        ("[a]: b\n", "line 1: expected a text as key"),
        ("name: a\n---\nname: b\n", "not valid YAML"),
        ("tags: &a [*a]\n", "nested too deeply for a recipe"),
    ],
)
def test_bad_yaml_is_one_clear_error(text, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    found = problems(path)
    assert len(found) == 1
    assert message in found[0]


def test_unsafe_yaml_runs_nothing(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    problems(path)
    assert not (tmp_path / "made").exists()


def test_a_missing_recipe_offers_the_nearest_name(write, tmp_path):
    write()
    assert problems(tmp_path / "recipes.yaml") == ["no such file; did you mean 'recipe.yaml'?"]
    assert problems(tmp_path) == ["can't be read: Is a directory"]
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    assert problems(tmp_path / "latin.yaml") == ["can't be read: it isn't UTF-8 text"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "--set 'training.epochs': expected key=value"),
        ("=3", "expected key=value"),
        ("training..epochs=3", "expected key=value"),
        ("training.epochs=[", "the value isn't YAML"),
        ("name.first=3", "--set name.first: name is 'tone', which has no keys"),
    ],
)
def test_bad_overrides_are_named(override, message, write):
    found = problems(write(), [override])
    assert len(found) == 1
    assert message in found[0]


def test_missing_settings_say_what_is_expected():
    with pytest.raises(RecipeError) as caught:
        Recipe.from_flags({})
    keys = [problem.split(":")[0] for problem in caught.value.problems]
    assert keys == ["name", "domain", "task", "base", "data"]


def test_a_recipe_is_checked_without_anything_heavy(write):
    script = (
        "import sys\n"
        "from lorary.training import Recipe\n"
        "from lorary.hub.errors import RecipeError\n"
        "Recipe.load(sys.argv[1])\n"
        "try: Recipe.load(sys.argv[1], ['task=x', 'lora.rank=0', 'data.test=gone.csv'])\n"
        "except RecipeError as error: assert len(error.problems) == 3, error\n"
        "heavy = ('torch', 'transformers', 'datasets', 'peft', 'trl', 'numpy', 'pandas', 'pyarrow', 'sklearn')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(write())], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_docs_have_every_setting():
    docs = "".join(path.read_text() for path in (Path(__file__).parents[2] / "docs").glob("*.md"))
    told = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", docs))))

    def settings(model):
        for name, field in model.model_fields.items():
            inner = field.annotation
            yield from settings(inner) if hasattr(inner, "model_fields") else [field.alias or name]

    assert not set(settings(Recipe)) - told


def test_a_home_folder_of_nobody_is_told_for_each_path(make_recipe):
    given = {"base": "~nobody-here/base", "data.train": "~nobody-here/rows.jsonl", "output": "~nobody-here/run"}
    with pytest.raises(RecipeError) as caught:
        make_recipe(**given)
    told = " ".join(caught.value.problems)
    assert all(f"{key}: {path!r}: no such user's home folder is known" in told for key, path in given.items())
