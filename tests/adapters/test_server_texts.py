"""The HTTP service's texts: OpenAI's paths give what ``generate`` gives alone, whole or as a stream."""

import gc
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from http_service import eventually, running, slow_down
from lorary.adapters import Backbone
from lorary.adapters.engine.decoding import Decoding
from lorary.adapters.server import Service, ServiceSettings, completions
from lorary.adapters.server.stopping import StopText
from lorary.hub import Registry
from lorary.hub.manifest import Generation, Manifest, Prompt
from tiny import make_adapter

pytestmark = pytest.mark.usefixtures("frozen_imports")
ENGINE = {"cache_tokens": 512, "batch_tokens": 16, "page_tokens": 4, "max_running": 4}
CHAT = "{% for m in messages %}{{ m.content }} {% endfor %}{% if loud %}the{% endif %}"
TEXTS, CHATS = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def backbone(bases, tmp_path_factory):
    """``plain`` and ``long`` write on, ``agent`` chats, ``short`` says how much it writes."""
    place = tmp_path_factory.mktemp("served")
    registry = Registry(place / "registry.db")
    backbone = Backbone.from_pretrained(str(bases("llama")), registry=registry)
    own = {
        "plain": {},
        "long": {},
        "agent": {"prompt": Prompt("chat", chat_template=CHAT)},
        "short": {"generation": Generation(max_new_tokens=3)},
    }
    for seed, (name, fields) in enumerate(own.items()):
        make_adapter(bases("llama"), place / name, task="text-generation", seed=seed + 1, r=4)
        Manifest(task="text-generation", base=backbone.identity, **fields).write(place / name)
        registry.add(place / name, name=name, domain="tests")
        backbone.load(name, f"{name}@1")
    return backbone


@pytest.fixture(scope="module")
def service(backbone):
    return Service(backbone, settings=ServiceSettings(engine=ENGINE, max_waiting=40))


@pytest.fixture(scope="module")
def caller(service):
    with running(service) as caller:
        yield caller


def alone(backbone, prompt, name, **settings):
    """What ``generate`` gives for it."""
    settings = {"max_new_tokens": 6} | settings
    return backbone.generate(prompt, name and f"{name}@1", **settings)


def test_a_completion_is_what_generate_gives(backbone, caller):
    body = {"model": "plain", "prompt": "profit rose", "max_tokens": 6}
    answer = caller.call(TEXTS, body)
    (choice,) = answer["choices"]
    assert choice["text"] == alone(backbone, "profit rose", "plain")
    assert (answer["object"], answer["model"], choice["finish_reason"]) == ("text_completion", "plain", "length")
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
    assert caller.call(TEXTS, body | {"model": "llama"})["choices"][0]["text"] == alone(backbone, "profit rose", None)


def test_several_prompts_and_several_texts_of_each(backbone, caller):
    body = {
        "model": "plain",
        "prompt": ["story", "dog cat ran"],
        "n": 2,
        "seed": 5,
        "temperature": 1.5,
        "max_tokens": 6,
    }
    answer = caller.call(TEXTS, body)
    expected = []
    for prompt in body["prompt"]:
        for seed in (5, 6):
            torch.manual_seed(seed)
            expected.append(alone(backbone, prompt, "plain", do_sample=True, temperature=1.5))
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert len(set(expected)) > 2
    assert answer["usage"]["prompt_tokens"] == 1 + 3


def test_prompts_in_token_ids(backbone, caller):
    """As evaluation harnesses send them; they are taken as they stand, whatever the adapter puts around a text."""
    ids = backbone.tokenizer(["story", "dog cat ran"])["input_ids"]
    body = {"model": "plain", "max_tokens": 6}
    expected = [alone(backbone, prompt, "plain") for prompt in ("story", "dog cat ran")]
    answer = caller.call(TEXTS, body | {"prompt": ids})
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert answer["usage"]["prompt_tokens"] == 1 + 3
    assert caller.call(TEXTS, body | {"prompt": ids[1]})["choices"][0]["text"] == expected[1]
    events = [json.loads(event) for event in list(caller.events(TEXTS, body | {"prompt": ids[1]}))[:-1]]
    assert "".join(event["choices"][0]["text"] for event in events) == expected[1]


def test_temperature_0_is_greedy_whatever_else_is_said(backbone, caller):
    body = {"model": "plain", "prompt": "story", "temperature": 0, "seed": 3, "top_p": 0.5, "max_tokens": 6}
    assert caller.call(TEXTS, body)["choices"][0]["text"] == alone(backbone, "story", "plain")


def test_a_stream_is_the_same_text_in_pieces(backbone, caller):
    # With a stop string each token is read by itself, however many have come by then.
    body = {"model": "plain", "prompt": "profit rose", "max_tokens": 8, "stream_options": {"include_usage": True}}
    body["stop"] = "@"
    *events, last = caller.events(TEXTS, body)
    assert last == "[DONE]"
    *pieces, used = map(json.loads, events)
    texts = [piece["choices"][0]["text"] for piece in pieces]
    assert len([text for text in texts if text]) > 2
    assert "".join(texts) == alone(backbone, "profit rose", "plain", max_new_tokens=8)
    assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert used["choices"] == []
    assert used["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}


def test_streams_of_several_texts_come_mixed(backbone, caller):
    body = {"model": "plain", "prompt": ["story", "dog cat ran"], "max_tokens": 6}
    texts = {0: "", 1: ""}
    for event in list(caller.events(TEXTS, body))[:-1]:
        (choice,) = json.loads(event)["choices"]
        texts[choice["index"]] += choice["text"]
    assert [texts[0], texts[1]] == [alone(backbone, prompt, "plain") for prompt in body["prompt"]]


def test_a_chat(backbone, caller):
    turns = [{"role": "user", "content": "profit rose"}, {"role": "assistant", "content": "story"}]
    body = {"model": "agent", "messages": turns, "max_completion_tokens": 6}
    answer = caller.call(CHATS, body)
    text = alone(backbone, turns, "agent")
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": text}
    in_parts = [{"role": "user", "content": [{"type": "text", "text": "profit "}, {"type": "text", "text": "rose"}]}]
    assert caller.call(CHATS, body | {"messages": in_parts + turns[1:]})["choices"][0]["message"]["content"] == text
    *events, _ = caller.events(CHATS, body)
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == text


def test_what_a_chat_template_is_told(backbone, caller):
    turns = [{"role": "user", "content": "profit rose"}]
    body = {"model": "agent", "messages": turns, "max_tokens": 6, "chat_template_kwargs": {"loud": True}}
    expected = alone(backbone, turns, "agent", chat_template_kwargs={"loud": True})
    assert caller.call(CHATS, body)["choices"][0]["message"]["content"] == expected
    assert expected != alone(backbone, turns, "agent")


def test_how_long_a_text_becomes_when_nobody_says(caller):
    """The adapter's own length; else all that there is room for, of 64 positions."""
    own = caller.call(TEXTS, {"model": "short", "prompt": "story"})
    assert own["usage"]["completion_tokens"] == 3
    free = caller.call(TEXTS, {"model": "plain", "prompt": "story"})
    assert free["choices"][0]["finish_reason"] == "stop" or free["usage"]["completion_tokens"] == 64


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_string_ends_a_text_and_is_left_out(backbone, caller, streamed):
    whole = alone(backbone, "profit rose", "plain", max_new_tokens=12)
    words = whole.split()
    stop = f"{words[4]} {words[5]}"
    body = {"model": "plain", "prompt": "profit rose", "max_tokens": 12, "stop": [stop, "never seen"]}
    if streamed:
        choices = [json.loads(event)["choices"][0] for event in list(caller.events(TEXTS, body))[:-1]]
        text, reason = "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]
    else:
        (choice,) = caller.call(TEXTS, body)["choices"]
        text, reason = choice["text"], choice["finish_reason"]
    assert text == whole[: whole.index(stop)]
    assert reason == "stop"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_string_in_the_last_token_that_was_allowed(backbone, caller, streamed):
    whole = alone(backbone, "profit rose", "plain", max_new_tokens=6)
    stop = whole.split()[-1]
    body = {"model": "plain", "prompt": "profit rose", "max_tokens": 6, "stop": stop}
    if streamed:
        choices = [json.loads(event)["choices"][0] for event in list(caller.events(TEXTS, body))[:-1]]
    else:
        choices = caller.call(TEXTS, body)["choices"]
    assert "".join(choice["text"] for choice in choices) == whole[: whole.index(stop)]
    assert choices[-1]["finish_reason"] == "stop"


@pytest.fixture
def late(monkeypatch):
    """Texts are written to their end before anybody reads them, as where the engine is quicker than its callers."""
    submit = completions._submit

    def finished(*given):
        writings = submit(*given)
        for writing in writings:
            writing.generation.result(20)
        return writings

    monkeypatch.setattr(completions, "_submit", finished)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.usefixtures("late")
def test_tokens_after_a_stop_string_count_for_nobody(backbone, caller, streamed):
    """Whatever the engine had written by the time that it was found."""
    words = alone(backbone, "profit rose", "plain", max_new_tokens=30).split()
    stop = f"{words[4]} {words[5]}"
    assert words.index(words[4]) == 4  # which it is in no earlier place
    body = {"model": "plain", "prompt": "profit rose", "max_tokens": 30, "stop": ["never seen", stop]}
    counted = figures(caller)
    if streamed:
        body["stream_options"] = {"include_usage": True}
        usage = json.loads(list(caller.events(TEXTS, body))[-2])["usage"]
    else:
        usage = caller.call(TEXTS, body)["usage"]
    assert usage == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
    assert figures(caller) - counted == 6


def figures(caller):
    """The tokens that were written with ``plain`` so far, as the service counts them."""
    found = re.search(r'^lorary_generated_tokens_total\{model="plain"\} (\S+)$', caller.call("/metrics"), re.MULTILINE)
    return float(found[1]) if found else 0


@pytest.mark.parametrize("pieces", [["one t", "wo thr", "ee"], ["one two three"], list("one two three")])
def test_pieces_that_may_begin_a_stop_string_are_held_back(pieces):
    kept = StopText(["two t", "zzz"])
    shown = [kept.add(piece) for piece in pieces]
    assert "".join(shown) + kept.rest() == "one "
    other = StopText(["two x"])
    assert "".join(other.add(piece) for piece in pieces) + other.rest() == "one two three"


@pytest.mark.parametrize("pieces", [["one two three four"], ["one two", " three four"], list("one two three four")])
@pytest.mark.parametrize("stops", [["two three", "wo"], ["wo", "two three"]])
def test_the_stop_string_that_is_there_first_ends_a_text(pieces, stops):
    """However much of the text comes at once."""
    kept = StopText(stops)
    assert "".join(kept.add(piece) for piece in pieces) == "one t"
    assert kept.ended


def test_callers_with_different_adapters_at_once(backbone, caller):
    rows = [
        (name, prompt) for name in ("plain", "long", "short", "llama") for prompt in ("story", "dog cat", "a big bank")
    ]

    def ask(row):
        return caller.call(TEXTS, {"model": row[0], "prompt": row[1], "max_tokens": 6})["choices"][0]["text"]

    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(ask, rows))
    assert found == [alone(backbone, prompt, None if name == "llama" else name) for name, prompt in rows]


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_goes_away_frees_what_it_held(service, caller, stream, monkeypatch, caplog):
    """And nothing is said of it. Slowed down, so that there is time to go."""
    engine = service.engine
    slow_down(monkeypatch, engine)
    before = engine.stats()
    body = {"model": "plain", "prompt": "story", "max_tokens": 60, "n": 2, "temperature": 1.0, "stream": stream}
    connection = caller.send_only(TEXTS, body)
    eventually(lambda: engine.stats().running == 2)
    connection.close()
    eventually(lambda: engine.stats().running == 0)
    after = engine.stats()
    assert after.cancelled - before.cancelled == 2
    assert after.cache_free == 1.0
    gc.collect()
    assert caplog.text == ""


def test_no_more_wait_than_may(service, caller, monkeypatch):
    """However many come at once: 40 beside the 4 that run, and none of them ends before all have come."""
    engine, gate = service.engine, threading.Event()
    choose = engine._chooser.__class__.__call__

    def held(self, *given):
        gate.wait(20)
        return choose(self, *given)

    monkeypatch.setattr(engine._chooser.__class__, "__call__", held)
    monkeypatch.setattr(Service, "_demand_room", lambda *_: None)  # all look too early
    codes = []

    def ask(_):
        response, connection = caller.send("POST", TEXTS, {"model": "llama", "prompt": "story", "max_tokens": 1})
        codes.append(response.status)
        if len(codes) == 16:
            gate.set()
        connection.close()

    with ThreadPoolExecutor(60) as threads:
        list(threads.map(ask, range(60)))
    assert codes == [429] * 16 + [200] * 44
    eventually(lambda: engine.stats().running == engine.stats().waiting == 0)


def test_too_many_who_wait_are_told_to_come_again(service, caller, monkeypatch):
    monkeypatch.setattr(service.engine, "stats", lambda: type("Stats", (), {"waiting": 40})())
    response, connection = caller.send("POST", TEXTS, {"model": "plain", "prompt": "story"})
    assert response.status == 429
    assert response.headers["Retry-After"] == "1"
    assert "40 requests wait" in json.loads(response.read())["error"]["message"]
    connection.close()


@pytest.mark.parametrize(("path", "body", "code", "message"), [
    (TEXTS, {"model": "plain", "prompt": ""}, 400, "prompt: expected a text"),
    (TEXTS, {"model": "plain"}, 400, "prompt: Field required"),
    (TEXTS, {"model": "plain", "prompt": ["story", [1]]}, 400, "prompt: expected a text, the token ids of one, or a"),
    (TEXTS, {"model": "plain", "prompt": [[1], []]}, 400, "prompt: expected a text"),
    (TEXTS, {"model": "plain", "prompt": [1, True]}, 400, "prompt: expected a text"),
    (TEXTS, {"model": "plain", "prompt": [1, 10**30]}, 400, "token ids, each a list of whole numbers from 0 to "),
    (TEXTS, {"model": "plain", "prompt": [[1], [-1]]}, 400, "token ids, each a list of whole numbers from 0 to "),
    (TEXTS, {"model": "plain", "prompt": [1] * 5000}, 400, "shorten the prompt"),
    (TEXTS, {"model": "plain", "prompt": "story", "max_tokenz": 3}, 400, "max_tokenz: no such field"),
    (TEXTS, {"model": "plain", "prompt": "story", "max_tokens": 0}, 400, "max_tokens: Input should be greater"),
    (TEXTS, {"model": "plain", "prompt": "story", "max_tokens": "3"}, 400, "max_tokens: Input should be a valid int"),
    (TEXTS, {"model": "plain", "prompt": "story", "temperature": -1}, 400,
     "temperature: Input should be greater than or equal to 0, found -1"),
    (TEXTS, {"model": "plain", "prompt": "story", "logprobs": 21}, 400, "logprobs: Input should be less than or equal"),
    (CHATS, {"model": "agent", "messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, 400,
     "top_logprobs is told with logprobs: true"),
    (TEXTS, {"model": "plain", "prompt": "story", "suffix": "cat"}, 400, "suffix isn't served"),
    (TEXTS, {"model": "plain", "prompt": "story " * 70}, 400, "shorten the prompt"),
    (TEXTS, {"model": "plain", "prompt": ["story"] * 33, "n": 8}, 400, "264 texts at once; expected at most 44"),
    (TEXTS, {"model": "plain", "prompt": "story", "max_tokens": 64, "n": 2}, 200, ""),
    (TEXTS, {"model": "plain", "prompt": ["story", "dog " * 70]}, 400, "shorten the prompt"),
    (TEXTS, {"model": "plian", "prompt": "story"}, 404, "no model 'plian' here; did you mean plain?"),
    (TEXTS, "{", 400, "the body isn't JSON"),
    (TEXTS, '"story"', 400, "valid dictionary"),
    (CHATS, {"model": "plain", "messages": [{"role": "user", "content": "story"}]}, 400, "/v1/completions"),
    (CHATS, {"model": "agent", "messages": []}, 400, "messages: "),
    (CHATS, {"model": "agent", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "only text"),
    (CHATS, {"model": "agent", "messages": [{"role": "user", "content": "a"}], "tools": [{"a": 1}]}, 400, "tools: "),
    (CHATS, {"model": "agent", "messages": [{"role": "user", "content": "a"}],
             "chat_template_kwargs": {"lord": 1}}, 400, "lord"),
])  # fmt: skip
def test_what_is_refused(service, caller, path, body, code, message):
    if code == 200:
        caller.call(path, body)
        return
    assert message in caller.problem(path, body, code=code)
    assert message in caller.problem(path, body if isinstance(body, str) else body | {"stream": True}, code=code)
    eventually(lambda: service.engine.stats().running == 0)  # what was taken on before the refusal is given up


def test_fields_that_ask_for_nothing_are_passed_over(caller):
    asked = {
        "frequency_penalty": 0,
        "logprobs": None,
        "best_of": 1,
        "user": "me",
        "logit_bias": {},
        "store": True,
        "top_p": 1,
    }
    body = {
        "model": "plain",
        "prompt": "story",
        "max_tokens": 2,
        "temperature": 1,
        "min_tokens": 2,
        "stop": None,
    } | asked
    assert caller.call(TEXTS, body)["usage"]["completion_tokens"] == 2


def test_a_request_that_goes_wrong_in_a_stream_ends_it_with_the_error(caller, monkeypatch):
    def fail(decoding, logits, sequence):
        raise ValueError("no token")

    monkeypatch.setattr(Decoding, "choose", fail)
    events = list(caller.events(TEXTS, {"model": "plain", "prompt": "story", "temperature": 1.0}))
    assert "choosing a token failed: no token" in json.loads(events[-1])["error"]["message"]


def test_a_base_that_the_engine_doesnt_serve(bases, tmp_path):
    """Its adapters answer on ``/v1/predict`` all the same."""
    base = bases("t5")
    backbone = Backbone.from_pretrained(str(base))
    make_adapter(base, tmp_path / "summary", task="seq2seq")
    Manifest(task="summarization", base=backbone.identity).write(tmp_path / "summary")
    with running(Service(backbone, [str(tmp_path / "summary")])) as caller:
        told = caller.problem(TEXTS, {"model": "summary", "prompt": "story"})
        assert "POST /v1/predict serves every task" in told
        answer = caller.call("/v1/predict", {"model": "summary", "inputs": ["profit rose"]})
        assert answer["predictions"] == backbone.predict(["profit rose"], "summary")
