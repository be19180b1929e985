"""Answers that keep to a JSON schema or a regular expression, beside others that don't have to."""

import itertools
import json
import re
import sys
import threading

import pytest
import torch
from transformers import LogitsProcessor

from characters import SIGNS, make_character_base
from lorary.adapters import Backbone
from lorary.adapters.text import structure
from lorary.adapters.text.structure import read_structure
from lorary.hub.errors import MissingDependencyError, RequestFailedError, UsageError
from samples import bpe_tokenizer
from tiny import make_adapter

pytestmark = pytest.mark.usefixtures("frozen_imports")
SMALL = {"cache_tokens": 1024, "batch_tokens": 16, "page_tokens": 4, "max_running": 16}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,4}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "mood": {"enum": ["happy", "sad", None]},
        "pets": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "age", "mood", "pets"],
    "additionalProperties": False,
}


def referring(links):
    """A schema of so many objects, each in the one before."""
    parts = {f"a{n}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{n + 1}"}}} for n in range(links)}
    return {"$ref": "#/$defs/a0", "$defs": parts | {f"a{links}": {"type": "null"}}}


WORDS = ("yes", "no", "maybe", "yesterday")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A Llama of characters, whose output layer has more rows than there are tokens, with two adapters."""
    folder = tmp_path_factory.mktemp("characters")
    make_character_base(folder / "base", positions=512, rows=260)
    backbone = Backbone.from_pretrained(str(folder / "base"))
    for seed, name in enumerate(("one", "two"), start=1):
        backbone.load(make_adapter(folder / "base", folder / name, task="text-generation", seed=seed))
    return backbone


@pytest.fixture(scope="module")
def engine(backbone):
    with backbone.engine(**SMALL) as engine:
        yield engine


def ids(text):
    return [SIGNS.index("Ġ" if sign == " " else sign) for sign in text]


class Among(LogitsProcessor):
    """Lets the text be one of some words, told by their beginnings."""

    def __init__(self, words, prompt_tokens):
        self.words, self.prompt_tokens = [ids(word) for word in words], prompt_tokens

    def __call__(self, input_ids, scores):
        written = input_ids[0, self.prompt_tokens :].tolist()
        begun = [word for word in self.words if word[: len(written)] == written and len(word) > len(written)]
        masked = torch.full_like(scores, -torch.inf)
        for word in begun:
            masked[0, word[len(written)]] = scores[0, word[len(written)]]
        return masked


def is_person(text):
    found = json.loads(text)
    assert list(found) == ["name", "age", "mood", "pets"]
    assert re.fullmatch("[a-z]{1,4}", found["name"])
    assert type(found["age"]) is int
    assert 0 <= found["age"] <= 99
    assert found["mood"] in ("happy", "sad", None)
    assert len(found["pets"]) <= 2
    assert all(type(pet) is bool for pet in found["pets"])
    return found


def test_texts_are_valid_whatever_the_model_and_the_seed(engine):
    """A model of random weights would hardly write JSON by itself."""
    requests = [
        engine.submit("who?", name, schema=PERSON, max_new_tokens=400, do_sample=True, temperature=2.0, seed=seed)
        for seed, name in itertools.product(range(6), ("one", "two", None))
    ]
    done = [request.result(60) for request in requests]
    assert {completion.finish_reason for completion in done} == {"stop"}
    assert len({json.dumps(is_person(completion.text)) for completion in done}) > 10


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 3.0, "top_k": 2}])
def test_the_choice_is_the_models_own_among_what_may_follow(backbone, engine, settings):
    """And the answer that ``generate`` gives where a processor written by hand lets the same words through."""
    words, seen = [word for word in WORDS if word != "yesterday"], set()
    for seed, name in itertools.product(range(5), ("one", "two", None)):
        prompt = "is it so" + "?" * seed
        torch.manual_seed(seed)
        among = [Among(words, len(prompt))]
        want = backbone.generate(prompt, name, max_new_tokens=2, logits_processor=among, **settings)
        drawn = {"seed": seed} if settings else {}
        got = engine.submit(prompt, name, max_new_tokens=2, regex="|".join(words), **settings, **drawn)
        assert got.result(20).text == want
        seen.add(want)
    assert len(seen) > 1


def test_others_in_the_same_steps_write_what_they_like(backbone, engine):
    free = [(prompt, name) for prompt in ("a", "dog", "who?") for name in ("one", "two", None)]
    alone = [backbone.generate(prompt, name, max_new_tokens=30) for prompt, name in free]
    bound = [engine.submit("who?", "one", schema=PERSON, max_new_tokens=400) for _ in range(3)]
    requests = [engine.submit(prompt, name, max_new_tokens=30) for prompt, name in free]
    assert [request.result(60).text for request in requests] == alone
    texts = {request.result(60).text for request in bound}
    assert len(texts) == 1
    is_person(texts.pop())


def test_a_text_ends_where_nothing_can_follow(engine):
    """No token ends this base's texts."""
    for word in WORDS:
        completion = engine.submit("?", regex=word, max_new_tokens=50).result(20)
        assert (completion.text, completion.finish_reason, len(completion.tokens)) == (word, "stop", len(word))
    completion = engine.submit("?", regex="yes(terday)?", max_new_tokens=50).result(20)
    assert completion.text == "yesterday"  # and not before: something could follow
    assert engine.submit("?", regex="!!", max_new_tokens=50).result(20).text == "!!"  # the vocabulary's first token


def test_a_token_that_ends_texts_does_where_the_text_may_end(engine):
    end = ids("!")[0]
    for seed in range(8):
        settings = {"do_sample": True, "temperature": 5.0, "seed": seed, "eos_token_id": end}
        completion = engine.submit("?", regex="(ab){1,3}", max_new_tokens=50, **settings).result(20)
        assert completion.finish_reason == "stop"
        assert re.fullmatch("(ab){1,3}!?", completion.text)
    ends = engine.submit("?", regex="[ab!]{4}", max_new_tokens=50, eos_token_id=end).result(20)
    assert len(ends.text) == 4


def test_rows_of_the_output_layer_that_no_token_has_are_never_chosen(engine):
    """Not even the one that stands for the end, where the text might end."""
    for row in range(256, 260):
        completion = engine.submit("?", regex="a+", max_new_tokens=5, logit_bias={row: 100}).result(20)
        assert completion.tokens == tuple(ids("aaaaa"))


def test_a_text_that_is_cut_off_says_so(engine):
    completion = engine.submit("?", "one", schema=PERSON, max_new_tokens=6).result(20)
    assert completion.finish_reason == "length"
    assert completion.text.startswith("{")


def test_any_json_object(engine):
    settings = {"max_new_tokens": 300, "do_sample": True, "temperature": 1.5}
    done = [engine.submit("?", schema={"type": "object"}, seed=seed, **settings).result(60) for seed in range(4)]
    assert all(isinstance(json.loads(c.text), dict) for c in done if c.finish_reason == "stop")
    assert all(c.text.startswith("{") for c in done)


@pytest.mark.parametrize(("settings", "told"), [
    ({"schema": {"type": "nope"}}, "schema: Invalid type: nope"),
    ({"schema": {"enum": []}}, "schema: Unsatisfiable"),
    ({"schema": {"not": {"type": "string"}}}, 'schema: Unimplemented keys: .*"not"'),
    ({"schema": {"$ref": "http://127.0.0.1:1/schema"}}, "schema: .*does not fetch"),
    ({"schema": ["type"]}, "expected a JSON schema, such as"),
    ({"schema": "{}"}, "expected a JSON schema, such as"),
    ({"schema": {"minimum": float("nan")}}, "schema: not a JSON object"),
    ({"schema": {"minimum": 10**400}}, "schema: number out of range"),
    ({"schema": {"enum": ["\ud800"]}}, "schema: unexpected end of hex escape"),
    ({"schema": {"type": "integer", "allOf": [{"multipleOf": n} for n in (1009, 1013, 1019)]}}, "schema: fuel exhaust"),
    ({"schema": {"enum": [f"value {number}" for number in range(50_000)]}}, "schema: .* characters as JSON; expected"),
    ({"schema": referring(1000)}, "schema: 1001 different references in 5 levels of nesting; expected at most 120"),
    ({"schema": {"type": "integer", "multipleOf": 1_000_003}}, "schema: multipleOf: expected numbers of up to 100000"),
    ({"schema": {"items": {"multipleOf": 0.60001}, "oneOf": [{"multipleOf": 60001e5}]}}, "all of them together"),
    ({"regex": "\ud800"}, "lone surrogate"),
    ({"regex": "("}, "regex: .*unclosed group"),
    ({"regex": "(?=a)b"}, "regex: .*look-around"),
    ({"regex": ""}, "expected a regular expression"),
    ({"regex": 3}, "expected a regular expression"),
    ({"regex": "a", "schema": {}}, "one structure; leave one of them out"),
])  # fmt: skip
def test_what_cant_be_is_told_at_submit(engine, settings, told):
    with pytest.raises(UsageError, match=told) as error:
        engine.submit("?", max_new_tokens=5, **settings)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


def test_deeply_nested_schemas_are_refused():
    tokenizer, lock = bpe_tokenizer(), threading.Lock()
    for depth in (50, 3000, 100_000):
        schema = {"type": "string"}
        for _ in range(depth):
            schema = {"anyOf": [schema]}
        if depth == 50:
            assert read_structure(tokenizer, lock, schema) is not None
            continue
        with pytest.raises(UsageError, match="schema: "):
            read_structure(tokenizer, lock, schema)


@pytest.mark.parametrize("schema", [
    referring(119), {"type": "integer", "multipleOf": 90_000_000}, {"type": "number", "multipleOf": 0.01},
    {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}}]},
    {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Word", "enum": ["für 🐙", "\0"]},
])  # fmt: skip
def test_what_takes_little_work_is_served(schema):
    begun = [read_structure(bpe_tokenizer(), threading.Lock(), schema) for _ in range(2)]
    assert begun[0].matcher is not begun[1].matcher


def test_nobody_waits_for_the_tokenizer_while_a_schema_is_read(monkeypatch):
    """It may take seconds."""
    lock, read, held = threading.Lock(), structure._matcher, []
    monkeypatch.setattr(structure, "_matcher", lambda *asked: (held.append(lock.locked()), read(*asked))[1])
    read_structure(bpe_tokenizer(), lock, PERSON)
    assert held == [False]


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "seed": 1}])
def test_settings_that_forbid_all_that_may_follow_are_an_error(engine, settings):
    """The likeliest of tokens that are all impossible would be the vocabulary's first one."""
    wrong = engine.submit("?", regex="ab", max_new_tokens=2, suppress_tokens=ids("b"), **settings)
    with pytest.raises(RequestFailedError, match="other settings forbid all that may follow"):
        wrong.result(20)
    assert (
        engine.submit("?", regex="a[bc]", max_new_tokens=2, suppress_tokens=ids("b"), **settings).result(20).text
        == "ac"
    )


def test_one_that_grows_too_large_fails_alone(backbone, engine):
    """What a step's matching may take is bounded, since everybody waits for it."""
    alone = backbone.generate("dog", "one", max_new_tokens=20)
    wild = engine.submit("?", regex="b(a{1000}){1000}", max_new_tokens=50)
    other = engine.submit("dog", "one", max_new_tokens=20)
    with pytest.raises(RequestFailedError, match=r"the text's structure: .*too many"):
        wild.result(20)
    assert other.result(20).text == alone


def test_a_tokenizer_of_words_is_refused(bases, kinds):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    with (
        backbone.engine(**SMALL) as engine,
        pytest.raises(UsageError, match="tokens are bytes or sentencepiece's pieces"),
    ):
        engine.submit("profit", schema=PERSON, max_new_tokens=5)


def test_without_llguidance(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingDependencyError, match=r"llguidance; pip install 'lorary\[serve\]'"):
        engine.submit("?", regex="a", max_new_tokens=5)
    assert engine.submit("?", max_new_tokens=5).result(20).text


@pytest.mark.parametrize("ends", [None, [SIGNS.index("~"), SIGNS.index("^")]], ids=["endless", "with ends"])
@pytest.mark.parametrize("asked", [{"schema": PERSON}, {"regex": "(yes|no|maybe)!{0,3}"}], ids=["schema", "regex"])
def test_generate_writes_what_the_engine_does(backbone, engine, ends, asked):
    """Each row by itself, though rows of one pass end at different times."""
    rows = [(prompt, name) for name in ("one", "two", None) for prompt in ("who?", "is it so, and why?")]
    settings = asked | {"max_new_tokens": 120, "eos_token_id": ends}
    requests = [engine.submit(prompt, name, **settings) for prompt, name in rows]
    alone = [request.result(20).text for request in requests]
    prompts, names = zip(*rows, strict=True)
    assert backbone.generate(prompts, list(names), **settings) == alone
    assert len(set(alone)) > 1
    torch.manual_seed(3)
    sampled = backbone.generate("who?", "one", **settings, do_sample=True, temperature=2.0)
    request = engine.submit("who?", "one", **settings, do_sample=True, temperature=2.0, seed=3)
    assert request.result(20).text == sampled
