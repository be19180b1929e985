"""OpenAI's penalties and biases in continuous batching: each request has its own, and they are what OpenAI says."""

import math

import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.engine.decoding import plan_decoding
from lorary.hub.errors import UsageError
from tiny import VOCABULARY, make_adapter, make_base, make_tokenizer

pytestmark = pytest.mark.usefixtures("frozen_imports")
SMALL = {"cache_tokens": 512, "batch_tokens": 16, "page_tokens": 4, "max_running": 16}
LONG = "profit sales rose fell bank the a report shares loss gain growth market price offer cash win free click patient"
PROMPTS = ("profit rose", "the bank the bank the bank", LONG)
NAMES = ("small", "large", None)
CASES = (
    {"frequency_penalty": 2.0},
    {"presence_penalty": 2},
    {"frequency_penalty": 0.7, "presence_penalty": 0.9},
    {"frequency_penalty": -2.0},
    {"presence_penalty": -1.5, "frequency_penalty": 0.2},
    {"logit_bias": {7: 3.5, 9: -100, 20: 2}},
    {"logit_bias": {12: 4.0, 30: 4.0}, "frequency_penalty": 1.5},
)


@pytest.fixture(scope="module")
def backbone(bases, kinds):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    for name in ("small", "large"):
        backbone.load(kinds(name), name)
    return backbone


@pytest.fixture(scope="module")
def engine(backbone):
    with backbone.engine(**SMALL) as engine:
        yield engine


class ByHand:
    """For ``generate`` of one prompt: OpenAI's formula, token by token, in double precision."""

    def __init__(self, prompt_tokens, *, frequency_penalty=0, presence_penalty=0, logit_bias=None):
        self.prompt_tokens = prompt_tokens
        self.frequency, self.presence = frequency_penalty, presence_penalty
        self.bias = logit_bias or {}

    def __call__(self, input_ids, scores):
        (row,), made = scores.double().tolist(), input_ids[0, self.prompt_tokens :].tolist()
        for token in range(len(row)):
            row[token] += self.bias.get(token, 0)
            row[token] -= self.frequency * made.count(token) + self.presence * (token in made)
        return torch.tensor([row], dtype=scores.dtype)


def alone(backbone, prompt, name, penalties, **settings):
    """What transformers gives with the reference."""
    settings = {"max_new_tokens": 8, "eos_token_id": None} | settings
    by_hand = ByHand(len(backbone.tokenizer(prompt)["input_ids"]), **penalties)
    return backbone.generate(prompt, name, logits_processor=[by_hand], **settings)


@pytest.fixture(scope="module")
def expected(backbone):
    """Of each prompt, adapter and case; each case changes what is written."""
    found = {
        (prompt, name, place): alone(backbone, prompt, name, case)
        for prompt in PROMPTS
        for name in NAMES
        for place, case in enumerate(CASES)
    }
    plain = {(prompt, name): alone(backbone, prompt, name, {}) for prompt in PROMPTS for name in NAMES}
    for place in range(len(CASES)):
        assert any(found[*row, place] != text for row, text in plain.items())
    return found, plain


def test_a_mixture_is_what_each_gets_alone(engine, expected):
    """Beside requests with others, and with none."""
    settings = {"max_new_tokens": 8, "eos_token_id": None}
    found, plain = expected
    free = {row: engine.submit(*row, **settings) for row in plain}
    requests = {row: engine.submit(row[0], row[1], **settings, **CASES[row[2]]) for row in found}
    assert {row: request.result(30).text for row, request in requests.items()} == found
    assert {row: request.result(30).text for row, request in free.items()} == plain


def test_prompts_in_chunks(backbone, expected):
    with backbone.engine(**SMALL | {"batch_tokens": 4}) as engine:
        requests = {
            row: engine.submit(row[0], row[1], max_new_tokens=8, eos_token_id=None, **CASES[row[2]])
            for row in expected[0]
            if row[0] == LONG
        }
        assert {row: request.result(30).text for row, request in requests.items()} == {
            row: expected[0][row] for row in requests
        }


@pytest.mark.parametrize("settings", [
    {"temperature": 0.5}, {"temperature": 2.0, "top_k": 5}, {"top_p": 0.6}, {"min_p": 0.1, "temperature": 3.0},
], ids=str)  # fmt: skip
def test_a_seed_gives_what_it_gives_generate(backbone, engine, settings):
    """So they come before temperature, and before what is cut off."""
    penalties = {"frequency_penalty": 0.8, "presence_penalty": 0.4, "logit_bias": {15: 2.5}}
    sampled = {"do_sample": True, "max_new_tokens": 12, "eos_token_id": None} | settings
    expected = {}
    for seed in range(4):
        torch.manual_seed(seed)
        expected[seed] = alone(backbone, "the bank", "small", penalties, **sampled)
    assert len(set(expected.values())) > 1
    requests = {seed: engine.submit("the bank", "small", seed=seed, **sampled, **penalties) for seed in expected}
    assert {seed: request.result(30).text for seed, request in requests.items()} == expected


def test_requests_that_give_way_to_others(backbone):
    """transformers begins them anew, with what they have written as part of the prompt; for the penalties it isn't."""
    penalties = {"frequency_penalty": 1.0, "presence_penalty": 0.5}
    rows = [(LONG, name) for name in (*NAMES, *NAMES)]
    wanted = {"max_new_tokens": 30, "eos_token_id": None}
    with backbone.engine(**SMALL | {"cache_tokens": 100}) as engine:
        requests = [engine.submit(*row, **wanted, **penalties) for row in rows]
        for row, request in zip(rows, requests, strict=True):
            assert request.result(30).text == alone(backbone, *row, penalties, **wanted)


def test_a_bias_comes_before_the_repetition_penalty(backbone, engine):
    """As vLLM has it, and transformers for its own biases."""
    differing = 0
    for token in range(5, VOCABULARY, 3):
        settings = {"max_new_tokens": 6, "eos_token_id": None, "repetition_penalty": 2.0}
        ours = engine.submit(LONG, "small", logit_bias={token: 6.0}, **settings).result(30).text
        assert ours == backbone.generate(LONG, "small", sequence_bias=[[[token], 6.0]], **settings)
        differing += ours != alone(backbone, LONG, "small", {"logit_bias": {token: 6.0}}, **settings)
    assert differing


def test_a_ban_and_a_wish(engine):
    wanted = {"max_new_tokens": 8, "eos_token_id": None}
    free = engine.submit("story", "large", **wanted).result(30)
    banned = engine.submit("story", "large", logit_bias=dict.fromkeys(free.tokens, -100), **wanted).result(30)
    assert not set(banned.tokens) & set(free.tokens)
    wished = engine.submit("story", "large", logit_bias={11: 100}, **wanted).result(30)
    assert set(wished.tokens) == {11}


def test_the_end_isnt_written_before_the_least_length(engine):
    made = engine.submit("story", None, max_new_tokens=9, min_new_tokens=5, eos_token_id=3, logit_bias={3: 100})
    completion = made.result(30)
    assert (len(completion.tokens), completion.tokens[-1], completion.finish_reason) == (6, 3, "stop")
    assert 3 not in completion.tokens[:-1]


def test_beside_what_the_call_or_the_base_says_of_the_same_tokens(backbone, engine, monkeypatch):
    wanted = {"max_new_tokens": 6, "eos_token_id": None}
    monkeypatch.setattr(backbone.model.generation_config, "sequence_bias", [[[8], -100.0]])
    assert set(engine.submit("story", logit_bias={11: 50}, **wanted).result(30).tokens) == {11}
    assert 8 not in engine.submit("story", logit_bias={8: 50}, **wanted).result(30).tokens


@pytest.mark.parametrize("asked", [
    {}, {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
    dict.fromkeys(("frequency_penalty", "presence_penalty", "logit_bias")),
], ids=str)  # fmt: skip
def test_who_asks_for_nothing_has_nothing(backbone, asked):
    assert plan_decoding(backbone.model, [5], None, asked, {}, backbone.tokenizer).plain


@pytest.mark.parametrize(("settings", "message"), [
    ({"frequency_penalty": 3}, "frequency_penalty=3: expected a number from -2 to 2"),
    ({"frequency_penalty": math.nan}, "frequency_penalty=nan: expected a number"),
    ({"frequency_penalty": True}, "frequency_penalty=True: expected a number"),
    ({"presence_penalty": -2.1}, r"presence_penalty=-2\.1: expected a number from -2 to 2"),
    ({"presence_penalty": "x"}, "presence_penalty='x': expected a number"),
    ({"logit_bias": [5, 1.0]}, r"logit_bias=\[5, 1\.0\]: expected a mapping of token ids to numbers"),
    ({"logit_bias": {"5": 1}}, "logit_bias: token '5': expected an id from 0 to 43"),
    ({"logit_bias": {7: 1, VOCABULARY: 1}}, "logit_bias: token 44: expected an id from 0 to 43"),
    ({"logit_bias": {-1: 1}}, "logit_bias: token -1: expected an id from 0 to 43"),
    ({"logit_bias": {True: 1}}, "logit_bias: token True: expected an id"),
    ({"logit_bias": {7: 1, 5: 1000}}, "logit_bias: 1000 for token 5: expected a number from -100 to 100"),
    ({"logit_bias": {5: math.nan}}, "logit_bias: nan for token 5: expected a number"),
    ({"logit_bias": {5: None}}, "logit_bias: None for token 5: expected a number"),
    ({"logit_bias": {5: "x"}}, "logit_bias: 'x' for token 5: expected a number"),
], ids=str)  # fmt: skip
def test_what_cant_be_meant(engine, settings, message):
    assert VOCABULARY == 44
    with pytest.raises(UsageError, match=message):
        engine.submit("profit", **settings)


def test_a_token_that_an_adapter_brought(tmp_path):
    """It has one of the rows that the base's embedding has to spare, up to the last of which tokens may be named."""
    base = make_base("llama", tmp_path / "base", vocab_size=VOCABULARY + 20)
    make_adapter(base, tmp_path / "own", task="text-generation", seed=1)
    own = make_tokenizer("llama")
    own.add_tokens(["<sql>"])
    own.save_pretrained(tmp_path / "own")
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(tmp_path / "own")
    with backbone.engine(**SMALL) as engine:
        wanted = {"max_new_tokens": 3, "logit_bias": {VOCABULARY: 100}}
        assert engine.submit("profit", "own", **wanted).result(30).text == "<sql> <sql> <sql>"
        once = engine.submit("profit", "own", **wanted | {"logit_bias": {VOCABULARY: 30}}, frequency_penalty=2)
        assert once.result(30).text == "<sql> <sql> <sql>"
        assert len(engine.submit("profit", "own", **wanted | {"logit_bias": {63: 100}}).result(30).tokens) == 3
        with pytest.raises(UsageError, match="logit_bias: token 64: expected an id from 0 to 63"):
            engine.submit("profit", "own", logit_bias={64: 1})
