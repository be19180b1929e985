"""What `lorary train` and `pretrain` say one may call next works as it is copied."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from lorary.hub.cli.main import main
from samples import scored_rows, write_jsonl

QUICK = ("training.max_steps=1", "training.learning_rate=0.01")
TASKS = {
    "text-classification": ["tone@1", "TEXT"],
    "pairs": ["tone@1", "TEXT", "--pair", "TEXT"],
    "token-classification": ["tone@1", "TEXT"],
    "question-answering": ["tone@1", "QUESTION", "--context", "TEXT"],
    "text-generation": ["tone@1", "PROMPT"],
    "summarization": ["tone@1", "TEXT"],
    "fill-mask": ["tone@1", "TEXT [MASK] TEXT"],
    "sentinels": ["tone@1", "TEXT <extra_id_0> TEXT"],
    "feature-extraction": ["tone@1", "TEXT", "--json"],
}
FAMILIES = {"fill-mask": ("fill-mask", "bert-mlm"), "sentinels": ("fill-mask", "t5-spans")}


def next_commands(out):
    """The words of each command that a command has printed at its end."""
    lines = out[out.index("Next:") :].removeprefix("Next:").splitlines()
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.parametrize("kind", TASKS)
def test_what_comes_next_works_as_it_is_copied(kind, make_small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    task, *family = FAMILIES.get(kind, ("text-classification" if kind == "pairs" else kind,))
    recipe = make_small(task, *family, rows=12, held=4)
    settings = [*QUICK]
    if kind == "pairs":
        rows = [{**row, "text_pair": row["text"]} for row in scored_rows(12)]
        write_jsonl(Path(recipe.data.train), rows)
        write_jsonl(Path(recipe.data.test), rows[:4])
        settings += ["data.columns={text: text, text_pair: text_pair, label: score}", "problem_type=regression"]
    Path("recipe.yaml").write_text(recipe.model_copy(update={"name": "tone"}).to_yaml())
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["train", "recipe.yaml", *words, "--registry", "the team's.db"]) == 0
    show, run = next_commands(capsys.readouterr().out)
    assert show == ["show", "tone@1", "--registry", "the team's.db"]
    assert run == ["run", *TASKS[kind], "--registry", "the team's.db"]
    assert main(show) == 0
    assert main(run) == 0


def test_a_text_with_a_gap_is_not_suggested_where_the_base_is_gone(make_small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = make_small("fill-mask", rows=12, held=4, **{"training.max_steps": 1, "output": "out"})
    base = shutil.copytree(recipe.base, tmp_path / "base")
    Path("recipe.yaml").write_text(recipe.model_copy(update={"base": str(base)}).to_yaml())
    assert main(["train", "recipe.yaml"]) == 0
    capsys.readouterr()
    shutil.rmtree(base)
    assert main(["train", "out", "--resume"]) == 0
    assert next_commands(capsys.readouterr().out) == [["show", "tiny@1"]]
