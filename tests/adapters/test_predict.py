"""`predict` gives what `transformers.pipeline` gives for the same model in PEFT's hands."""

from functools import partial

import pytest
import transformers

from lorary.adapters import Backbone
from lorary.hub.errors import UsageError
from lorary.hub.manifest import Manifest, Preprocessing
from methods import make_method
from tiny import make_adapter, make_tokenizer, peft_reference

TEXTS = ["profit rose the bank", "patient with asthma and cancer"]


@pytest.fixture
def loaded(bases, tmp_path):
    def make(family, task):
        adapter = make_adapter(bases(family), tmp_path / "adapter", task=task)
        backbone = Backbone.from_pretrained(str(bases(family)))
        backbone.load(adapter)
        model = peft_reference(bases(family), adapter, task=task).base_model.model
        if task == "text-generation":
            return backbone, transformers.pipeline(task, model=model, tokenizer=backbone.tokenizer)
        return backbone, transformers.pipeline(task, model=model, tokenizer=backbone.tokenizer)

    return make


def assert_same(got, want):
    if isinstance(want, list):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_same(one, other)
    elif isinstance(want, dict):
        assert got.keys() == want.keys()
        for key in want:
            assert_same(got[key], want[key])
    elif isinstance(want, str):
        assert got == want
    else:
        assert got == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("params", [{}, {"top_k": None}, {"top_k": 2}, {"function_to_apply": "sigmoid"}])
def test_text_classification(loaded, params):
    backbone, pipeline = loaded("roberta", "text-classification")
    for inputs in (TEXTS, TEXTS[0], {"text": TEXTS[0], "text_pair": TEXTS[1]}):
        assert_same(backbone.predict(inputs, "adapter", **params), pipeline(inputs, **params))


@pytest.mark.parametrize(
    ("columns", "row", "problem"),
    [
        (
            {"text": "q"},
            {"q": "a dog", "text_pair": "ran"},
            "a row has a text_pair, and .* was trained on single texts",
        ),
        ({"text": "q", "text_pair": "r"}, {"q": "a dog"}, "a row is a single text, and .* was trained on pairs"),
        ({"text": "q", "text_pair": "r"}, "a dog", "a row is a single text, and .* was trained on pairs"),
    ],
)
def test_pairs_are_of_adapters_that_were_trained_on_them(columns, row, problem, bases, tmp_path):
    adapter = make_adapter(bases("bert"), tmp_path / "adapter", task="text-classification")
    backbone = Backbone.from_pretrained(str(bases("bert")))
    manifest = Manifest("text-classification", backbone.identity, preprocessing=Preprocessing(columns))
    manifest.write(adapter)
    backbone.load(adapter)
    with pytest.raises(UsageError, match=problem):
        backbone.predict(row, "adapter")
    right = {"q": "a dog", **({"r": "ran"} if "text_pair" in columns else {})}
    assert backbone.predict(right, "adapter")["label"].startswith("LABEL_")


@pytest.mark.parametrize("params", [{}, {"aggregation_strategy": "simple"}, {"ignore_labels": ["LABEL_0"]}])
def test_token_classification(loaded, params):
    backbone, pipeline = loaded("bert", "token-classification")
    for inputs in (TEXTS, TEXTS[0]):
        assert_same(backbone.predict(inputs, "adapter", **params), pipeline(inputs, **params))


def test_token_classification_of_words(loaded):
    backbone, pipeline = loaded("bert", "token-classification")
    words = [text.split() for text in TEXTS]
    assert_same(backbone.predict(words, "adapter"), pipeline(words, is_split_into_words=True))


def test_long_texts_are_tagged_to_their_end(loaded):
    backbone, _ = loaded("bert", "token-classification")
    text = " ".join(["patient with asthma and cancer"] * 40)  # 200 words, the tokenizer's limit is 64 tokens
    for inputs in (text, text.split()):
        (entities,) = backbone.predict([inputs], "adapter", ignore_labels=[])
        assert len(entities) == 200
        assert [text[e["start"] : e["end"]] for e in entities] == text.split()


def test_feature_extraction(loaded):
    backbone, pipeline = loaded("bert", "feature-extraction")
    assert_same(backbone.predict(TEXTS, "adapter"), pipeline(TEXTS))
    assert_same(backbone.predict(TEXTS[0], "adapter"), pipeline(TEXTS[0]))


def test_text_generation(loaded):
    backbone, pipeline = loaded("llama", "text-generation")
    params = {"max_new_tokens": 5, "do_sample": False}
    assert_same(
        backbone.predict(TEXTS[:1], "adapter", **params),
        pipeline(TEXTS[:1], **params, clean_up_tokenization_spaces=False),
    )


def test_rows_that_no_tagger_reads(loaded):
    backbone, _ = loaded("bert", "token-classification")
    for row, found in (({"body": "profit"}, "found body"), (3, "found int"), (["profit", 3], "found list")):
        with pytest.raises(UsageError, match=f"expected a .*{found}"):
            backbone.predict([row], "adapter")
    assert backbone.predict([{"text": TEXTS[0]}], "adapter") == backbone.predict([TEXTS[0]], "adapter")
    assert backbone.predict([], "adapter", top_k=3) == []


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "feature-extraction"])
def test_a_limit_beyond_the_backbones_own(bases, tmp_path, task):
    """A manifest may name more tokens than the backbone has positions for."""
    adapter = make_adapter(bases("bert"), tmp_path / "adapter", task=task)
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(adapter, "as-it-is")
    Manifest(task, backbone.identity, preprocessing=Preprocessing(max_length=1000)).write(adapter)
    backbone.load(adapter, "limited")
    long = " ".join(TEXTS * 40)
    assert backbone.predict(long, "limited") == backbone.predict(long, "as-it-is")


@pytest.mark.parametrize("preprocessing", [Preprocessing(stride=62), Preprocessing(max_length=2)], ids=str)
def test_windows_without_room_for_a_text(bases, tmp_path, preprocessing):
    adapter = make_adapter(bases("bert"), tmp_path / "adapter", task="token-classification")
    backbone = Backbone.from_pretrained(str(bases("bert")))
    Manifest("token-classification", backbone.identity, preprocessing=preprocessing).write(adapter)
    backbone.load(adapter)
    with pytest.raises(UsageError, match=r"windows of \d+ tokens have room for \d+ of a text, and can't overlap by"):
        backbone.predict(TEXTS, "adapter")


def test_bad_rows_and_parameters(loaded):
    backbone, _ = loaded("bert", "text-classification")
    with pytest.raises(UsageError, match="expected a column 'text', found body"):
        backbone.predict([{"body": "profit"}], "adapter")
    with pytest.raises(UsageError, match="predict doesn't take function_to_apply='softmin': 'SOFTMIN' isn't known"):
        backbone.predict(TEXTS, "adapter", function_to_apply="softmin")
    for size in (0, 1.5, "many"):
        with pytest.raises(UsageError, match=r"batch_size=.*: expected a whole number of at least 1"):
            backbone.predict(TEXTS, "adapter", batch_size=size)


@pytest.mark.parametrize("method", ["slots", "IA3"])
def test_texts_without_a_token(bases, tmp_path, method):
    """Llama's tokenizer here adds none of its own, as GPT-2's and Qwen's; padding isn't to be answered for it."""
    backbone = Backbone.from_pretrained(str(bases("llama")))
    for task in ("text-classification", "token-classification", "feature-extraction"):
        make = make_adapter if method == "slots" else partial(make_method, method=method)
        backbone.load(make(bases("llama"), tmp_path / task, task=task), task)
    for task in ("text-classification", "feature-extraction"):
        for inputs in ("", [""], ["", TEXTS[0]]):
            with pytest.raises(UsageError, match="an empty text: this tokenizer adds no token of its own"):
                backbone.predict(inputs, task)
    alone = backbone.predict(TEXTS[0], "token-classification")
    assert alone
    assert backbone.predict("", "token-classification") == []
    assert backbone.predict(["", ""], "token-classification") == [[], []]
    assert_same(backbone.predict(["", TEXTS[0], ""], "token-classification"), [[], alone, []])


def test_a_tokenizer_with_tokens_that_the_model_lacks(bases, tmp_path):
    """On a GPU one of them would end whatever else the process does there."""
    model = transformers.AutoModelForCausalLM.from_pretrained(bases("llama"))
    tokenizer = make_tokenizer("llama")
    tokenizer.add_tokens(["rocket"])
    backbone = Backbone.from_model(model, tokenizer)
    tagger = make_adapter(bases("llama"), tmp_path / "tagger", task="token-classification")
    backbone.load(tagger)
    backbone.load(make_method(bases("llama"), tmp_path / "own", "IA3", task="text-generation"))
    for adapter in (None, "own"):
        with pytest.raises(UsageError, match="the tokenizer gives token 44, but the model has 44"):
            backbone.generate(["profit", "a rocket"], adapter, max_new_tokens=2)
    for rows, adapter in (("a rocket", None), (["profit", "a rocket"], "tagger")):
        with pytest.raises(UsageError, match="the tokenizer gives token 44, but the model has 44"):
            backbone.predict(rows, adapter)
    assert backbone.predict("profit", "tagger")
