"""Texts that `generate` keeps to a structure: each row of a pass by itself, whatever bases and callers put beside."""

import re

import pytest

from characters import SIGNS, character_tokenizer, make_character_base
from lorary.adapters import Backbone
from lorary.hub.errors import UsageError
from tiny import load_base, make_adapter, make_base

pytestmark = pytest.mark.usefixtures("frozen_imports")
ENDS = [SIGNS.index("~"), SIGNS.index("^")]
PAD = SIGNS.index("a")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A Llama of characters with an adapter."""
    folder = tmp_path_factory.mktemp("characters")
    make_character_base(folder / "base")
    backbone = Backbone.from_pretrained(str(folder / "base"))
    backbone.load(make_adapter(folder / "base", folder / "one", task="text-generation"))
    return backbone


def test_generate_writes_several_texts_of_a_structure(backbone):
    asked = {"regex": "(a|b){2,5}c", "max_new_tokens": 20, "eos_token_id": SIGNS.index("~"), "num_return_sequences": 4}
    texts = backbone.generate(["who?", "why?"], "one", do_sample=True, temperature=3.0, **asked)
    assert all(re.fullmatch("[ab]{2,5}c", text) for pair in texts for text in pair)
    assert len({text for pair in texts for text in pair}) > 1


@pytest.mark.parametrize(("settings", "message"), [
    ({"schema": {}, "regex": "a"}, "a text has one structure"),
    ({"regex": "a", "num_beams": 2}, "pass num_beams=1"),
    ({"regex": "a", "num_return_sequences": 2, "do_sample": True}, "no token ends this base's texts"),
    ({"regex": "("}, "regex: "),
    ({"schema": {"type": "nope"}}, "schema: "),
    ({"regex": "ab", "suppress_tokens": [SIGNS.index("b")]}, "other settings forbid all that may follow"),
], ids=str)  # fmt: skip
def test_what_generate_refuses(backbone, settings, message):
    with pytest.raises(UsageError, match=message):
        backbone.generate("who?", "one", max_new_tokens=5, **settings)


@pytest.mark.parametrize("sampled", [{}, {"do_sample": True, "temperature": 0.5}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("settings", [
    {"min_new_tokens": 10}, {"no_repeat_ngram_size": 3, "eos_token_id": ENDS[0]}, {"suppress_tokens": ENDS},
    {"pad_token_id": PAD},
    {"prefix_allowed_tokens_fn": lambda row, ids: [SIGNS.index(sign) for sign in "abcdefghi"]},
    {"stop_strings": ["d"], "pad_token_id": PAD},
], ids=" ".join)  # fmt: skip
def test_a_row_that_has_ended_waits_for_the_others(backbone, settings, sampled):
    """What may follow in its place is padding, which settings may forbid, and no structure knows."""
    asked = {"regex": "b|cb|abcdefghi", "max_new_tokens": 20, "eos_token_id": ENDS, **settings, **sampled}
    bias = {"sequence_bias": [[[PAD], 2.0]]} if sampled else {}
    prompts = ["who?", "why?", "a", "to be or not to be", "?", "and", "or", "b"]
    texts = backbone.generate(prompts, ["one", None] * 4, **asked, **bias)
    assert len({len(text) for text in texts}) > 1
    whole = ["b", "cb", "abcd" if "stop_strings" in settings else "abcdefghi"]
    assert all(any(text.startswith(one) and not text[len(one) :].strip("a") for one in whole) for text in texts)
    if "stop_strings" not in settings:
        assert set(texts) <= set(whole)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_tokens_that_a_base_forces_are_none_of_the_text(tmp_path, family):
    """BART begins with one, mBART with its language's, and both end with one what is cut off."""
    begin, end = 256, 257
    base = make_base(family, tmp_path / "base", vocab_size=258, bos_token_id=begin, eos_token_id=end)
    model = load_base(base, "seq2seq")
    model.generation_config.decoder_start_token_id = end
    backbone = Backbone.from_model(model, character_tokenizer(bos_token="<s>", eos_token="</s>"))
    asked = {"regex": "[a-f]{2}|no[a-f]{5}", "do_sample": True, "temperature": 9.0, "num_return_sequences": 6}
    for forced in (None, begin), (end, None), (end, begin):
        model.generation_config.forced_eos_token_id, model.generation_config.forced_bos_token_id = forced
        (texts,) = backbone.generate(["who?"], max_new_tokens=30, **asked)
        assert all(re.fullmatch(asked["regex"], text) for text in texts)
        assert len(set(texts)) > 2
        (cut,) = backbone.generate(["who?"], max_new_tokens=6, **asked)
        assert all(re.fullmatch("[a-f]{2}|no[a-f]{1,4}", text) for text in cut)


@pytest.mark.parametrize("name", ["logits_processor", "stopping_criteria"])
def test_what_is_no_list_is_the_callers_mistake(backbone, name):
    with pytest.raises(UsageError, match=f"can't generate with {name}, regex"):
        backbone.generate("who?", regex="a", **{name: lambda ids, scores, **_: False})
