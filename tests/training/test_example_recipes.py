"""Every example recipe reads its own data, and trains with the first rows: two steps, the gate, the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from lorary.training import Recipe, train
from lorary.training.data import load_data
from lorary.training.recipe.sections import Task

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "examples" / "recipes").glob("*.yaml") if path.stem != "pretrain")
FAMILIES = {
    "text-generation": "llama", "fill-mask": "bert-mlm", "summarization": "t5", "translation": "t5",
}  # fmt: skip
BASES = {"span-corruption": "t5-spans"}  # where a task has more than one kind of base
METRICS = {
    "text-classification": "f1", "token-classification": "f1", "question-answering": "exact_match",
    "feature-extraction": "mrr@10", "summarization": "rougeL", "translation": "bleu", "text-generation": "perplexity",
    "fill-mask": "perplexity", "regression": "pearson", "preferences": "reward_accuracy",
}  # fmt: skip

LINES = {"train": 64, "test": 12}  # of hundreds: enough for every label


@pytest.mark.parametrize("name", RECIPES)
def test_an_example_recipe_trains_on_its_data(name, bases, registry, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)

    def load(stem: str, **changes: str) -> Recipe:
        file = Path("examples/recipes", f"{stem}.yaml")
        family = BASES.get(stem) or FAMILIES.get(Recipe.load(file).task, "bert")
        base = bases(family)
        flags = {"base": base, "output": str(tmp_path / stem), "device": "cpu", "training.max_steps": 2}
        flags |= {"generation.rows": 2, "training.max_target_length": 16} if base.endswith("t5") else {}
        flags |= {"report.write": stem in get_args(Task), **changes}  # one of each task is enough
        length = "training.max_length=64" if base.endswith("bert") else "training.max_length=128"
        whole = Recipe.load(file, [length], flags)
        assert load_data(whole).test
        few = {f"data.{split}": first(getattr(whole.data, split), lines) for split, lines in LINES.items()}
        return Recipe.load(file, [length], {**flags, **few})

    def first(file: str, lines: int) -> str:
        path = tmp_path / Path(file).name
        path.write_text("".join(Path(file).read_text().splitlines(keepends=True)[:lines]))
        return str(path)

    if name == "intermediate":
        train(load("continual", name="my-domain"), registry)
    recipe = load(name)
    version = train(recipe, registry)
    assert version.manifest.provenance["steps"] == 2
    assert METRICS.get(name, METRICS[recipe.task]) in version.metrics["test"]
    assert version.strategy == recipe.strategy
    assert ({"report.html", "curves.png"} <= set(version.files)) == (name in get_args(Task))
    assert registry.verify() == []
