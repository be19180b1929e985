"""Text generation measured by the texts that it writes, when the recipe asks for it."""

from __future__ import annotations

import json

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf

from lorary.adapters import Backbone
from lorary.hub.errors import RecipeError
from lorary.training import train
from lorary.training.tasks.metrics.texts import corpus_scores, exact_match, rouge, sentences
from samples import prompt_rows, write_jsonl

ASKED = {"generation.rows": 12, "generation.max_new_tokens": 8, "report.write": False}


@pytest.mark.parametrize("form", ["instruction", "chat"])
def test_completions_are_compared_with_what_generate_gives(form, make_recipe, registry, tmp_path):
    settings = {**ASKED, "training.epochs": 1, "prompt.format": form, "prompt.learn": "all"}
    recipe = make_recipe("text-generation", rows=48, **settings)
    version = train(recipe, registry)
    metrics = version.metrics["test"]
    assert {"exact_match", "rouge1", "rougeL", "loss", "perplexity", "token_accuracy"} <= metrics.keys()
    assert version.manifest.generation.max_new_tokens == 8

    backbone = Backbone.from_pretrained(recipe.base)
    backbone.load(tmp_path / "out", "it")
    rows = [prompt_rows(20, seed=9)[place * 20 // 12] for place in range(12)]
    found = [text.strip() for text in backbone.generate([row["prompt"] for row in rows], "it")]
    golds = [row["completion"] for row in rows]
    assert metrics["exact_match"] == exact_match(found, golds)
    assert metrics["rougeL"] == pytest.approx(rouge(found, golds)["rougeL"])


def test_the_report_ranks_rows_by_the_loss_of_their_completions(make_recipe, registry, tmp_path):
    settings = {**ASKED, "generation.rows": 2, "training.max_steps": 2, "report.write": True, "report.rows": 4}
    version = train(make_recipe("text-generation", rows=16, held=6, **settings), registry)
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["worst"]
    losses = [row["loss"] for row in rows]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > version.metrics["test"]["loss"]
    assert all(row["expected"] for row in rows)


def test_prompts_that_are_messages(make_recipe, registry, tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": "rose"}],
        }
        for row in prompt_rows(16)
    ]
    recipe = make_recipe("text-generation", **{**ASKED, "training.epochs": 1})
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", rows[:4])
    assert "exact_match" in train(recipe, registry).metrics["test"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generation.rows": 4}, "generation.max_new_tokens: missing"),
        ({**ASKED, "data.columns": {"text": "text"}}, "generation.rows: only rows of prompt and completion"),
        ({"generation.max_new_tokens": 4}, "nothing is generated for generation.rows: 0"),
    ],
)
def test_what_cannot_be_asked(settings, message, make_recipe):
    with pytest.raises(RecipeError, match=message):
        make_recipe("text-generation", **settings)


# The metrics are those of the libraries

FOUND = ["Profit rose. Sales fell", "the bank cut a debt", ""]
GOLDS = ["Profit rose sharply.\nSales fell.", "The bank cut its debt.", "a record"]


def test_rouge_is_rouge_scores():
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(names)
    lines = [("Profit rose sharply.\nSales fell.", "Profit rose.\nSales fell"), *zip(GOLDS[1:], FOUND[1:], strict=True)]
    wanted = [scorer.score(gold, found) for gold, found in lines]
    assert rouge(FOUND, GOLDS) == {name: pytest.approx(sum(row[name].fmeasure for row in wanted) / 3) for name in names}


def test_a_match_is_exact_but_for_white_space():
    assert exact_match(["a  b\n", "ab", "A b"], ["a b", "a b", "a b"]) == pytest.approx(1 / 3)


def test_bleu_and_chrf_are_sacrebleus():
    assert corpus_scores(FOUND, GOLDS) == {
        "bleu": corpus_bleu(FOUND, [GOLDS]).score,
        "chrf": corpus_chrf(FOUND, [GOLDS]).score,
    }


@pytest.mark.parametrize(
    "text",
    ["Прибыль выросла сильно.", "प्रॉफिट बढ़ा आज", "利润上升了。", "กำไรเพิ่มขึ้น"],
)
def test_every_script_counts(text):
    assert rouge([text], [text])["rouge1"] == 1.0
    assert rouge(["profit rose"], [text])["rouge1"] == 0.0
    assert corpus_scores([text * 3], [text * 3])["chrf"] == pytest.approx(100.0)


def test_bleu_of_scripts_without_spaces_is_that_of_characters():
    gold = "利润上升了百分之十二"
    assert corpus_scores([gold[:-1]], [gold])["bleu"] == corpus_bleu([gold[:-1]], [[gold]], tokenize="char").score


def test_sentences():
    assert sentences('He came. "Why?" she asked!\nNobody knew 3.5 of it') == [
        "He came.", '"Why?"', "she asked!", "Nobody knew 3.5 of it",
    ]  # fmt: skip
    assert sentences("") == []
