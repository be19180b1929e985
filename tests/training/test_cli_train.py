"""``lorary train`` as a user meets it: exit codes, one-line errors, the table, JSON, and the example recipes."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from lorary.hub.cli.main import main
from lorary.hub.registry import Registry
from lorary.training import Recipe
from lorary.training.pretraining import PretrainRecipe
from samples import tone_rows, write_jsonl

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"


@pytest.fixture
def flags(tmp_path, bases, monkeypatch):
    """Flags of a short run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", tone_rows(60))
    return [
        "--name", "tone", "--domain", "Finance", "--task", "text-classification", "--base", bases("bert"),
        "--data", "rows.jsonl", "--epochs", "2", "--rank", "4", "--device", "cpu", "--registry", "own.db",
        "--set", "training.learning_rate=0.01",
    ]  # fmt: skip


def test_flags_alone_train_and_end_with_a_table_and_next_commands(flags, capsys):
    assert main(["train", *flags]) == 0
    out = capsys.readouterr().out
    version = Registry("own.db").resolve("tone")
    assert f"{version.parameters:,}" in out
    header = next(line.split("  ") for line in out.splitlines() if line.startswith("metric"))
    assert [cell.strip() for cell in header if cell.strip()] == ["metric", "trained", "untrained", "majority class"]
    assert "lorary show tone@1" in out
    assert "lorary run tone@1" in out
    (folder,) = Path("runs").iterdir()
    assert f"Files: {folder}" in out


def test_the_next_command_of_an_adapter_of_pairs_asks_with_a_pair(flags, capsys):
    write_jsonl(Path("rows.jsonl"), [{**row, "text_pair": "profit rose"} for row in tone_rows(60)])
    columns = ["--set", "data.columns={text: text, text_pair: text_pair, label: label}"]
    assert main(["train", *flags, *columns, "--set", "training.max_steps=1"]) == 0
    assert 'lorary run tone@1 "TEXT" --pair "TEXT"' in capsys.readouterr().out


def test_json_is_all_of_stdout(flags, capsys):
    assert main(["train", *flags, "--json", "--output", "here", "--alias", "prod"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["reference"], printed["folder"], printed["aliases"]) == ("tone@1", "here", ["prod"])


def test_the_same_run_again_is_the_same_version(flags, capsys):
    main(["train", *flags])
    assert main(["train", *flags]) == 0
    assert "The same adapter was in the catalogue already, as tone@1." in capsys.readouterr().out
    assert len(Registry("own.db").versions("tone")) == 1


def test_flags_win_over_a_recipe_and_set_over_both(flags, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("name: other\ndomain: x\nlora: {rank: 2}\ntraining: {seed: 1, epochs: 9}\n")
    assert main(["train", "recipe.yaml", *flags, "--set", "training.seed=5", "--seed", "4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    recipe = printed["manifest"]["provenance"]["recipe"]
    assert (recipe["name"], recipe["lora"]["rank"], recipe["training"]["seed"]) == ("tone", 4, 5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "expected a recipe or flags; for example: lorary train"),
        (["gone.yaml"], 2, "gone.yaml: 1 problem"),
        (["--data", "gone.jsonl"], 2, "--data: data.train: no such file 'gone.jsonl'"),
        (["--method", "lara"], 2, "--method: method: expected one of lora, qlora, rslora, dora, "),
        (["--epochs", "many"], 2, "Invalid value for '--epochs'"),
        (["--nonsense"], 2, "--nonsense"),
        (["--data", "bad.jsonl"], 1, "bad.jsonl, row 2, text: is empty"),
        (["--base", "./gone"], 1, "./gone: no such folder"),
        (["--registry", "rows.jsonl"], 1, "rows.jsonl"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_error_with_its_exit_code(arguments, code, message, flags, tmp_path, capsys):
    write_jsonl(tmp_path / "bad.jsonl", [*tone_rows(1), {"text": "", "label": "good"}])
    assert main(["train", *(flags if arguments and arguments[0].startswith("--") else []), *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not Path("own.db").exists()
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_ctrl_c_is_one_line_that_says_how_to_go_on(flags, forks, tmp_path):
    words = ["train", *flags, "--epochs", "2000", "--output", "here"]
    running = forks.start("lorary.hub.cli.main:main", words, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("here.incomplete/checkpoints/*/complete.json")):
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGINT)
    ended = running.wait()
    assert ended.code == 130
    assert ended.out == ""
    assert "Traceback" not in ended.err
    last = ended.err.strip().splitlines()[-1]
    assert re.fullmatch(
        r"lorary: error: tone: stopped, nothing was registered; step \d+ of \d+ is kept in here.incomplete; "
        r"go on with: (lorary train here --resume --registry .*own\.db)",
        last,
    )
    assert not (tmp_path / "here").exists()
    assert not (tmp_path / "own.db").exists()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_recipes_are_right_and_so_are_the_overrides_they_show(path, monkeypatch):
    monkeypatch.chdir(RECIPES.parents[1])
    kind, command = (PretrainRecipe, "pretrain") if path.stem == "pretrain" else (Recipe, "train")
    recipe = kind.load(path)
    lines = [line.removeprefix("#") for line in path.read_text().splitlines()]
    commands = [line.split() for line in lines if line.split()[:2] == ["lorary", command]]
    assert len(commands) >= 2
    for words in commands:
        assert words[:3] == ["lorary", command, str(path.relative_to(RECIPES.parents[1]))]
    for words in commands[1:]:
        overrides = [after for word, after in pairwise(words) if word == "--set"]
        assert len(overrides) == 2
        assert kind.load(path, overrides) != recipe
