"""OpenAI's penalties and biases over HTTP: the engine's, by OpenAI's names and in its shapes."""

import json

import pytest

from http_service import CHATS, TEXTS, piece, running, serving_writer, written

pytestmark = pytest.mark.usefixtures("frozen_imports")
ENGINE = {"cache_tokens": 512, "batch_tokens": 16, "page_tokens": 4, "max_running": 4}
TEXT = {"model": "writer", "prompt": "profit rose", "max_tokens": 8}
CHAT = {"model": "writer", "messages": [{"role": "user", "content": "profit rose"}], "max_tokens": 8}
BOTH = pytest.mark.parametrize(("path", "body"), [(TEXTS, TEXT), (CHATS, CHAT)], ids=["completion", "chat"])


@pytest.fixture(scope="module")
def service(bases, tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    return serving_writer(bases("llama"), place, **ENGINE)


@pytest.fixture(scope="module")
def caller(service):
    with running(service) as caller:
        caller.call(TEXTS, TEXT)  # which loads it
        yield caller


@pytest.mark.parametrize(("sent", "asked"), [
    ({"frequency_penalty": 1.5}, {"frequency_penalty": 1.5}),
    ({"presence_penalty": -2}, {"presence_penalty": -2.0}),
    ({"logit_bias": {"7": 5, "9": -100.0}, "frequency_penalty": 0.5, "temperature": 0},
     {"logit_bias": {7: 5.0, 9: -100.0}, "frequency_penalty": 0.5}),
    ({"logit_bias": {"15": 4}, "presence_penalty": 0.5, "temperature": 1.5, "seed": 3},
     {"logit_bias": {15: 4}, "presence_penalty": 0.5, "do_sample": True, "temperature": 1.5, "seed": 3}),
], ids=str)  # fmt: skip
@BOTH
def test_what_the_engine_makes_of_them(service, caller, path, body, sent, asked):
    expected = service.engine.submit("profit rose", "writer@1", max_new_tokens=8, **asked).result(20)
    assert expected.text != service.engine.submit("profit rose", "writer@1", max_new_tokens=8).result(20).text
    answer = caller.call(path, body | sent)
    assert written(answer["choices"][0]) == expected.text
    assert answer["usage"]["completion_tokens"] == len(expected.tokens)
    events = [json.loads(event)["choices"][0] for event in list(caller.events(path, body | sent))[:-1]]
    assert "".join(map(piece, events)) == expected.text


def test_each_of_several_texts_counts_its_own(service, caller):
    settings = {"frequency_penalty": 2.0, "presence_penalty": 1.0}
    answer = caller.call(TEXTS, TEXT | settings | {"n": 2, "seed": 5, "temperature": 0.7})
    sampled = settings | {"max_new_tokens": 8, "do_sample": True, "temperature": 0.7}
    alone = [service.engine.submit("profit rose", "writer@1", seed=seed, **sampled).result(20).text for seed in (5, 6)]
    assert [choice["text"] for choice in answer["choices"]] == alone


@pytest.mark.parametrize("asked", [
    {"frequency_penalty": 0, "presence_penalty": -0.0, "logit_bias": {}},
    {"frequency_penalty": None, "presence_penalty": None, "logit_bias": None}, {"logit_bias": {"7": 0}},
], ids=str)  # fmt: skip
@BOTH
def test_what_asks_for_nothing_changes_nothing(caller, path, body, asked):
    plain, same = (written(caller.call(path, sent)["choices"][0]) for sent in (body, body | asked))
    assert same == plain


@pytest.mark.parametrize(("field", "value", "message"), [
    ("frequency_penalty", "3", "frequency_penalty: Input should be less than or equal to 2, found 3"),
    ("frequency_penalty", '"x"', "frequency_penalty: Input should be a valid number, found 'x'"),
    ("frequency_penalty", "true", "frequency_penalty: Input should be a valid number, found True"),
    ("frequency_penalty", "NaN", "frequency_penalty: Input should be"),
    ("presence_penalty", "-2.5", "presence_penalty: Input should be greater than or equal to -2, found -2.5"),
    ("presence_penalty", "-Infinity", "presence_penalty: Input should be greater than or equal to -2, found -inf"),
    ("presence_penalty", "[1]", "presence_penalty: Input should be a valid number"),
    ("logit_bias", '"x"', "logit_bias: expected an object of token ids and numbers, found 'x'"),
    ("logit_bias", "[5, 1]", "logit_bias: expected an object of token ids and numbers, found [5, 1]"),
    ("logit_bias", "true", "logit_bias: expected an object of token ids and numbers, found True"),
    ("logit_bias", '{"abc": 1}', "logit_bias: 'abc' is no token id; expected a whole number, as in {\"50256\": -100}"),
    ("logit_bias", '{"-1": 1}', "logit_bias: token -1: expected an id from 0 to 43"),
    ("logit_bias", '{"9999999999999999999": 1}', "logit_bias: token 9999999999999999999: expected an id from 0 to 43"),
    ("logit_bias", '{"05": 1}', "logit_bias: '05' is no token id"),
    ("logit_bias", '{"\u0665": 1}', "logit_bias: '\u0665' is no token id"),
    ("logit_bias", '{"": 1}', "logit_bias: '' is no token id"),
    ("logit_bias", '{"%s": 1}' % ("9" * 5000), "logit_bias: '9999"),
    ("logit_bias", '{"7": 1, "44": 1}', "logit_bias: token 44: expected an id from 0 to 43"),
    ("logit_bias", '{"5": 1000}', "logit_bias: 1000 for token 5: expected a number from -100 to 100"),
    ("logit_bias", '{"5": 1%s}' % ("0" * 400), "logit_bias: 1000"),
    ("logit_bias", '{"5": NaN}', "logit_bias: nan for token 5: expected a number from -100 to 100"),
    ("logit_bias", '{"5": true}', "logit_bias: True for token 5: expected a number from -100 to 100"),
    ("logit_bias", '{"5": null}', "logit_bias: None for token 5: expected a number from -100 to 100"),
    ("logit_bias", '{"5": {}}', "logit_bias: {} for token 5: expected a number from -100 to 100"),
    ("logit_bias", json.dumps({f"{token}": "x" for token in range(10_001)}),
     "logit_bias: 10001 tokens; expected at most 10000"),
], ids=lambda value: str(value)[:30])  # fmt: skip
@BOTH
def test_what_is_refused(service, caller, path, body, field, value, message):
    told = caller.problem(path, f'{json.dumps(body)[:-1]}, "{field}": {value}}}'.encode())
    assert message in told
    assert len(told) < 300
    assert service.engine.stats().running == 0


def test_paths_descriptions_say_what_may_be_sent(caller):
    fields = caller.call("/openapi.json")["components"]["schemas"]["ChatBody"]["properties"]
    (penalty, _), (bias, _) = fields["frequency_penalty"]["anyOf"], fields["logit_bias"]["anyOf"]
    assert (penalty["minimum"], penalty["maximum"]) == (-2, 2)
    assert (bias["type"], bias["additionalProperties"]) == ("object", {"type": "number"})
