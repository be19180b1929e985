"""The example recipes for chats and preferences, with their own data, on a tiny base."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorary.training import Recipe, train

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["chat", "preferences"])
def test_an_example_recipe_trains_on_its_data(name, bases, registry, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = {"base": bases("llama"), "output": str(tmp_path / "out"), "device": "cpu", "training.max_steps": 2}
    recipe = Recipe.load(f"examples/recipes/{name}.yaml", ["training.max_length=256"], flags)
    version = train(recipe, registry)
    assert version.manifest.prompt.format == "chat"
    assert version.manifest.provenance["steps"] == 2
    assert (
        "reward_accuracy" in version.metrics["test"]
        if name == "preferences"
        else "perplexity" in version.metrics["test"]
    )
