"""T5's task classes take its body apart: their heads are trained, saved and served like any other base's."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import PeftModel

from lorary.adapters import Backbone
from lorary.adapters.running.forward import logits_of
from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.errors import TrainingError
from lorary.training import train
from lorary.training.model import load_for
from lorary.training.tasks import make_task
from samples import save_base
from tiny import make_tokenizer, task_class

HEADS = {
    "text-classification": "classification_head",
    "token-classification": "classifier",
    "question-answering": "qa_outputs",
}


@pytest.fixture
def trained(make_recipe, registry, tmp_path):
    """A version of each task on one T5, by the task's name; each passed the gate."""

    def make(task):
        own = {"name": task, "output": str(tmp_path / task), "training.max_steps": 3}
        recipe = make_recipe(task, "t5", rows=24, **own)
        return recipe, train(recipe, registry)

    return {task: make(task) for task in HEADS}


def test_heads_are_trained_saved_and_served_together(trained, registry, tmp_path):
    served = Backbone.from_pretrained(trained["question-answering"][0].base, device="cpu", registry=registry)
    for task, (recipe, version) in trained.items():
        assert HEADS[task] in read_checkpoint(tmp_path / task).config["modules_to_save"]
        labels = {"num_labels": len(version.manifest.labels)} if version.manifest.labels else {}
        theirs = task_class(task).from_pretrained(recipe.base, **labels)
        assert type(theirs).__name__.startswith("T5For")
        theirs = PeftModel.from_pretrained(theirs, tmp_path / task).eval()
        served.load(task)  # on the whole base, whatever part of it the task's class has
        rows = [list(row) for row in version.manifest.golden_rows]
        for row, ours in zip(rows, served.logits(rows, task), strict=True):
            with torch.no_grad():
                expected = logits_of(theirs(input_ids=torch.tensor([row])))[0]
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    texts = {
        "text-classification": "profit rose today",
        "token-classification": "the bank report",
        "question-answering": {"question": "bank said", "context": "sales in the report rose today"},
    }
    together = served.predict(list(texts.values()), list(texts))
    alone = [served.predict([row], task)[0] for task, row in texts.items()]
    assert together[0]["label"] == alone[0]["label"]
    assert together[0]["score"] == pytest.approx(alone[0]["score"], abs=1e-5)
    assert [one["entity"] for one in together[1]] == [one["entity"] for one in alone[1]]
    assert together[2]["answer"] == alone[2]["answer"]


@pytest.mark.parametrize("config", ["T5Config", "MT5Config", "UMT5Config"])
def test_each_class_is_known_as_the_base_that_it_has_a_part_of(config, make_recipe, tmp_path):
    tokenizer = make_tokenizer("t5")
    made = getattr(transformers, config)(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = transformers.AutoModelForSeq2SeqLM.from_config(made)
    folder = str(save_base(model, tokenizer, tmp_path / "base"))
    whole = Backbone.from_pretrained(folder, device="cpu")
    for task in HEADS:
        recipe = make_recipe(task, base=folder)
        base = load_for(make_task(recipe, ("a", "b") if "classification" in task else None), recipe)
        assert base.saved == (HEADS[task],)
        assert base.identity.fingerprint == whole.identity.fingerprint


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_text_generation_is_refused_with_what_to_do(family, make_recipe):
    recipe = make_recipe("text-generation", family)
    message = rf"\({family}\) is an encoder-decoder, which isn't trained for text-generation; use task summarization"
    with pytest.raises(TrainingError, match=message):
        load_for(make_task(recipe, None), recipe)


def test_a_head_that_transformers_has_no_class_for_is_refused_in_a_line(make_recipe):
    recipe = make_recipe("token-classification", "bart")
    with pytest.raises(TrainingError, match="transformers has no such class for 'bart' models") as caught:
        load_for(make_task(recipe, ("a", "b")), recipe)
    assert "\n" not in str(caught.value)
