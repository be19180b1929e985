"""Log probabilities over HTTP: the engine's, in the shapes of OpenAI's two paths, whole or with each piece."""

import json

import pytest

from http_service import CHATS, TEXTS, running, serving_writer

pytestmark = pytest.mark.usefixtures("frozen_imports")
ENGINE = {"cache_tokens": 512, "batch_tokens": 16, "page_tokens": 4, "max_running": 4}
BODY = {"model": "writer", "prompt": "profit rose", "max_tokens": 8, "logprobs": 2}
CHAT = {"model": "writer", "messages": [{"role": "user", "content": "profit rose"}], "max_tokens": 8, "logprobs": True}


@pytest.fixture(scope="module")
def service(bases, tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    return serving_writer(bases("llama"), place, **ENGINE)


@pytest.fixture(scope="module")
def caller(service):
    with running(service) as caller:
        yield caller


@pytest.fixture(scope="module")
def expected(service, caller):
    """What the engine says of the same prompt: its tokens as texts, and how likely each was."""
    caller.call(TEXTS, BODY)  # which loads it
    completion = service.engine.submit("profit rose", "writer@1", max_new_tokens=8, logprobs=2).result(20)

    def text(token):
        return service.backbone.tokenizer.decode([token])

    return [
        (text(token), told.logprob, {text(other): value for other, value in told.likeliest})
        for token, told in zip(completion.tokens, completion.logprobs, strict=True)
    ]


def near(value):
    return pytest.approx(value, abs=1e-4)


def test_of_a_completion(caller, expected):
    (choice,) = caller.call(TEXTS, BODY)["choices"]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert [token.strip() for token in told["tokens"]] == [token for token, _, _ in expected]
    assert told["token_logprobs"] == near([value for _, value, _ in expected])
    for found, (_, _, likeliest) in zip(told["top_logprobs"], expected, strict=True):
        assert {token.strip(): value for token, value in found.items()} == near(likeliest)
    ends = [*told["text_offset"][1:], len(choice["text"])]
    pieces = [choice["text"][begin:end] for begin, end in zip(told["text_offset"], ends, strict=True)]
    assert pieces == told["tokens"]


def test_of_a_chat(caller, expected):
    (choice,) = caller.call(CHATS, CHAT | {"top_logprobs": 2})["choices"]
    content = choice["logprobs"]["content"]
    assert "".join(row["token"] for row in content) == choice["message"]["content"]
    assert [row["logprob"] for row in content] == near([value for _, value, _ in expected])
    assert all(bytes(row["bytes"]).decode() == row["token"] for row in content)
    for row, (_, _, likeliest) in zip(content, expected, strict=True):
        assert {one["token"].strip(): one["logprob"] for one in row["top_logprobs"]} == near(likeliest)
    alone = caller.call(CHATS, CHAT)["choices"][0]["logprobs"]["content"]
    assert [row["top_logprobs"] for row in alone] == [[]] * len(content)
    assert [row["logprob"] for row in alone] == near([value for _, value, _ in expected])


def test_the_chosen_token_is_always_there(caller):
    """Also where it isn't among the likeliest that were asked for."""
    body = BODY | {"temperature": 100, "seed": 3}
    told = caller.call(TEXTS, body)["choices"][0]["logprobs"]
    for token, value, row in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert row[token] == value
    assert max(map(len, told["top_logprobs"])) == 3
    none = caller.call(TEXTS, body | {"logprobs": 0})["choices"][0]["logprobs"]["top_logprobs"]
    assert none == [{token: value} for token, value in zip(told["tokens"], told["token_logprobs"], strict=True)]


@pytest.mark.parametrize("stop", [None, "a whole word"])
@pytest.mark.parametrize(("path", "body"), [(TEXTS, BODY), (CHATS, CHAT | {"top_logprobs": 1})], ids=["text", "chat"])
def test_a_stream_tells_the_same_with_its_pieces(caller, path, body, stop):
    (whole,) = caller.call(path, body)["choices"]
    if stop is not None:
        text = whole["text"] if path == TEXTS else whole["message"]["content"]
        body = body | {"stop": " ".join(text.split()[3:5])}
        (whole,) = caller.call(path, body)["choices"]
        assert whole["finish_reason"] == "stop"
    told = [json.loads(event)["choices"][0]["logprobs"] for event in list(caller.events(path, body))[:-1]]
    together = {name: [] for name in whole["logprobs"] if whole["logprobs"][name] is not None}
    for part in told:
        for name in together:
            together[name] += (part or {}).get(name, [])
    assert together == {name: whole["logprobs"][name] for name in together}
    assert len([part for part in told if part]) > 2
    if stop is not None:  # told of are the tokens that count: up to the one that the stop string ends with
        assert len(next(iter(together.values()))) == caller.call(path, body)["usage"]["completion_tokens"] == 5


def test_the_end_of_a_text_is_a_token_too(service, caller, monkeypatch):
    caller.call(TEXTS, BODY)
    tokens = service.engine.submit("profit rose", "writer@1", max_new_tokens=8).result(20).tokens
    assert tokens.index(tokens[4]) == 4
    monkeypatch.setattr(service.backbone.model.generation_config, "eos_token_id", tokens[4])
    answer = caller.call(TEXTS, BODY)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == answer["usage"]["completion_tokens"] == 5


def test_nobody_else_is_told(caller):
    body = {name: value for name, value in BODY.items() if name != "logprobs"}
    assert caller.call(TEXTS, body)["choices"][0]["logprobs"] is None
    assert caller.call(CHATS, CHAT | {"logprobs": False, "top_logprobs": 0})["choices"][0]["logprobs"] is None
