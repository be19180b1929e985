"""Summaries and translations in the shapes that transformers 4's pipelines documented, on T5 and BART."""

import pytest

from lorary.adapters import Backbone
from lorary.hub.errors import UsageError
from lorary.hub.manifest import BaseIdentity, Generation, Manifest, Preprocessing
from tiny import make_adapter, make_tokenizer, peft_reference, task_class

TEXTS = ["story mother house dog cat", "profit rose the bank", "free cash"]
SETTINGS = {"max_new_tokens": 6, "do_sample": False}
PREFIX = {"summarization": "report ", "translation": "growth market "}
KEYS = {"summarization": "summary_text", "translation": "translation_text"}


@pytest.fixture(params=["t5", "bart"])
def served(request, bases, tmp_path):
    """A backbone with a summary and a translation adapter, and a function for what PEFT generates with one of them."""
    base = bases(request.param)
    backbone = Backbone.from_pretrained(str(base))
    for seed, task in enumerate(KEYS, start=1):
        folder = make_adapter(base, tmp_path / task, task="seq2seq", seed=seed)
        preprocessing = Preprocessing({"text": "body"}, max_length=6, prefix=PREFIX[task])
        Manifest(task, BaseIdentity("x"), preprocessing=preprocessing).write(folder)
        backbone.load(folder)

    def want(task, text, **settings):
        model = peft_reference(base, tmp_path / task, task="seq2seq")
        inputs = backbone.tokenizer(
            PREFIX[task] + text, return_tensors="pt", return_token_type_ids=False, truncation=True, max_length=6
        )
        made = model.generate(**inputs, **SETTINGS | settings, pad_token_id=0)
        return backbone.tokenizer.batch_decode(made, skip_special_tokens=True)

    return backbone, want


@pytest.mark.parametrize("task", list(KEYS))
def test_shapes(served, task):
    backbone, want = served
    key = KEYS[task]
    texts = [want(task, text)[0] for text in TEXTS]
    assert backbone.predict(TEXTS, task, **SETTINGS) == [{key: text} for text in texts]
    assert backbone.predict(TEXTS[0], task, **SETTINGS) == [{key: texts[0]}]
    assert backbone.predict({"body": TEXTS[0]}, task, **SETTINGS) == {key: texts[0]}
    several = want(task, TEXTS[0], num_beams=3, num_return_sequences=2)
    got = backbone.predict(TEXTS[0], task, **SETTINGS, num_beams=3, num_return_sequences=2)
    assert got == [{key: text} for text in several]


def test_tasks_mix(served):
    backbone, want = served
    names = ["translation", "summarization", None, "translation"]
    rows = [*TEXTS, TEXTS[0]]
    got = backbone.predict(rows, names, **SETTINGS)
    assert [type(one) for one in got] == [dict, dict, list, dict]
    for name, row, one in zip(names, rows, got, strict=True):
        if name is not None:
            assert one == {KEYS[name]: want(name, row)[0]}
    assert got[2] == backbone.predict([rows[2]])[0]


def test_parameters_go_to_the_tasks_that_take_them(served, bases, tmp_path):
    backbone, _ = served
    family = backbone.body.config.model_type
    folder = make_adapter(
        bases(family), tmp_path / "tone", task="text-classification", modules_to_save=["classification_head"]
    )
    backbone.load(folder)
    scores, summary = backbone.predict(TEXTS[:2], ["tone", "summarization"], top_k=2, **SETTINGS)
    assert scores == backbone.predict(TEXTS[:1], "tone", top_k=2)[0]
    assert summary == backbone.predict(TEXTS[1:2], "summarization", **SETTINGS)[0]
    with pytest.raises(UsageError, match="doesn't take do_sample, max_new_tokens here; known: function"):
        backbone.predict(TEXTS[:1], "tone", **SETTINGS)
    with pytest.raises(UsageError, match="no prompt: expected one of text, document, found headline"):
        backbone.predict({"headline": TEXTS[0]}, "summarization", **SETTINGS)


def test_the_new_text_alone(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(make_adapter(bases("llama"), tmp_path / "it", task="text-generation"))
    full, new = (
        backbone.predict(TEXTS[:1], "it", return_full_text=full, **SETTINGS)[0][0]["generated_text"]
        for full in (True, False)
    )
    assert full == TEXTS[0] + new
    assert new == backbone.generate(TEXTS[:1], "it", **SETTINGS)[0]


@pytest.mark.parametrize("settings", [{}, {"max_length": 4}])
def test_a_length_that_the_prompt_alone_fills(bases, tmp_path, settings):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(make_adapter(bases("llama"), tmp_path / "a", task="text-generation"))
    if not settings:
        backbone.model.generation_config.max_length = 4  # as some bases' own files have it
    whose = "max_length of this call" if settings else "max_length of the base's generation_config"
    for answer in (backbone.predict, backbone.generate):
        with pytest.raises(UsageError, match=f"5 tokens.*the {whose} is 4.*max_new_tokens"):
            answer(["profit", TEXTS[0]], "a", **settings)
        assert answer(["profit rose"], "a", **settings)
        assert answer(TEXTS[:1], "a", max_new_tokens=2)
    if not settings:
        with backbone.engine(cache_tokens=64, page_tokens=8) as engine, pytest.raises(UsageError, match="is 4"):
            engine.submit(TEXTS[0], "a")


@pytest.mark.parametrize(("family", "prompt"), [("gpt2", 60), ("bart", 2), ("bart", 70)])
def test_a_text_that_outgrows_the_table_of_positions(bases, family, prompt):
    backbone = Backbone.from_pretrained(str(bases(family)))
    with pytest.raises(UsageError, match=r"has 64 positions.* shorten the prompt, or lower max_new_tokens"):
        backbone.generate(" ".join(["profit"] * prompt), max_new_tokens=70, eos_token_id=None)


@pytest.mark.parametrize("settings", [
    {"num_return_sequences": 2}, {"stop_strings": 5}, {"bad_words_ids": 5}, {"suppress_tokens": 5},
    {"temperature": 0.0, "do_sample": True}, {"max_new_tokenz": 3},
], ids=str)  # fmt: skip
def test_arguments_that_transformers_refuses(bases, settings):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    with pytest.raises(UsageError, match=f"can't generate with {', '.join(settings)}: ."):
        backbone.generate("profit", **settings)


@pytest.mark.parametrize("end", [3, None])
def test_a_tokenizer_without_an_end_of_text(bases, tmp_path, end):
    """As BERT's, which some bases in other languages write with; the adapter says how much it was measured with."""
    folder = make_adapter(bases("llama"), tmp_path / "a", task="text-generation")
    Manifest("text-generation", BaseIdentity("x"), generation=Generation(5)).write(folder)
    model, tokenizer = task_class("text-generation").from_pretrained(bases("llama")), make_tokenizer("llama")
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = end
    backbone = Backbone.from_model(model, tokenizer)
    backbone.load(folder)
    plain = peft_reference(bases("llama"), folder, task="text-generation")
    inputs = tokenizer("profit rose", return_tensors="pt", return_token_type_ids=False)
    made = plain.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=end, pad_token_id=0)
    want = tokenizer.decode(made[0, 2:], skip_special_tokens=True)
    assert backbone.generate(["profit rose", "a"], "a")[0] == want
    with backbone.engine(cache_tokens=64) as engine:
        assert engine.submit("profit rose", "a").result(30).text == want


def test_what_is_no_prompt(bases):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    for prompts in (["profit", 5], [None], {"prompt": "profit"}, [["profit"]], b"profit"):
        with pytest.raises(UsageError, match=r"expected a prompt \(a text, or a list of .*found"):
            backbone.generate(prompts)
    assert backbone.generate(iter(["profit"]), max_new_tokens=2) == backbone.generate(["profit"], max_new_tokens=2)


def test_a_prompt_that_fills_all_positions(bases):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    with pytest.raises(UsageError, match=r"70 tokens.*the model has 64 positions"):
        backbone.generate(" ".join(["profit"] * 70))
