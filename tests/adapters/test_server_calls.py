"""Calls of tools over HTTP: as transformers reads them where the base's tokenizer says how, else as written."""

import json
import logging

import pytest

from http_service import running
from lorary.adapters import Backbone
from lorary.adapters.server import Service, ServiceSettings
from lorary.hub import Registry
from lorary.hub.manifest import Manifest, Prompt
from tiny import make_adapter

pytestmark = pytest.mark.usefixtures("frozen_imports")
ENGINE = {"cache_tokens": 512, "batch_tokens": 16, "page_tokens": 4, "max_running": 4}
CHATS = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "string"}}}}}
BODY = {
    "model": "agent", "messages": [{"role": "user", "content": "profit rose"}], "max_tokens": 12, "tools": [TOOL],
    "min_tokens": 12, "repetition_penalty": 50.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def backbone(bases, tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    backbone = Backbone.from_pretrained(str(bases("llama")), registry=Registry(place / "registry.db"))
    make_adapter(bases("llama"), place / "agent", task="text-generation", r=4, seed=5)
    prompt = Prompt("chat", chat_template="{% for m in messages %}{{ m.content }} {% endfor %}")
    Manifest(task="text-generation", base=backbone.identity, prompt=prompt).write(place / "agent")
    backbone.registry.add(place / "agent", name="agent", domain="tests")
    backbone.load("agent")
    return backbone


@pytest.fixture
def serve(backbone, monkeypatch):
    """A service whose base's tokenizer has this response template."""

    def serve(template):
        monkeypatch.setattr(backbone.tokenizer, "response_template", template)
        return running(Service(backbone, settings=ServiceSettings(engine=ENGINE)))

    return serve


@pytest.fixture(scope="module")
def words(backbone):
    """What it writes, which a template in these tests takes for calls and thoughts."""
    with backbone.engine(**ENGINE) as engine:
        told = {"max_new_tokens": 12, "min_new_tokens": 12, "repetition_penalty": 50.0}
        text = engine.submit(BODY["messages"], "agent", **told).result(20).text
    words = text.split()
    assert len(set(words)) == 12
    return words


def templated(opening, closing, content="text", **more):
    """A call begins with a word, goes on with the function's name, and ends with another word."""
    function = {"name": "{name}", "arguments": {"at": "{content}"}}
    call = {
        "open_pattern": rf"{opening} (?P<name>\w+)", "close": closing, "content": content, "repeats": True,
        "transform": {"type": "function", "function": function},
    }  # fmt: skip
    return {"start_anchor": "rose", "fields": {"tool_calls": call, "content": {}, **more}}


def as_transformers_reads(backbone, words):
    return backbone.tokenizer.parse_response(" ".join(words), prefix="profit rose", tools=[TOOL])


def streamed(caller, body):
    """The message and the reason that a stream comes to."""
    message, reason = {"content": "", "calls": {}}, None
    for event in list(caller.events(CHATS, body))[:-1]:
        (choice,) = json.loads(event)["choices"]
        delta, reason = choice["delta"], choice["finish_reason"]
        message["content"] += delta.get("content", "")
        if "reasoning_content" in delta:
            message["reasoning"] = message.get("reasoning", "") + delta["reasoning_content"]
        for call in delta.get("tool_calls", ()):
            assert call["index"] not in message["calls"]
            message["calls"][call["index"]] = call
    return message, reason


def test_a_call_is_what_transformers_reads(backbone, serve, words):
    with serve(templated(words[3], words[6])) as caller:
        expected = as_transformers_reads(backbone, words)
        (choice,) = caller.call(CHATS, BODY)["choices"]
        message = choice["message"]
        assert [call["function"]["name"] for call in message["tool_calls"]] == [
            call["function"]["name"] for call in expected["tool_calls"]
        ]
        assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [
            call["function"]["arguments"] for call in expected["tool_calls"]
        ]
        assert message["tool_calls"][0]["function"]["name"] == words[4]
        assert message["tool_calls"][0]["type"] == "function"
        assert message["content"].startswith(" ".join(words[:3]))
        assert "content" in expected
        assert choice["finish_reason"] == "length"  # as it is where a text was cut

        found, _ = streamed(caller, BODY)
        assert found["content"].split() == message["content"].split()
        calls = [found["calls"][place] for place in range(len(found["calls"]))]
        assert [call["function"] for call in calls] == [call["function"] for call in message["tool_calls"]]
        assert len({call["id"] for call in calls + message["tool_calls"]}) == 2 * len(calls)


@pytest.mark.parametrize("stop", [False, True])
def test_an_answer_that_ends_with_a_call(backbone, serve, words, monkeypatch, stop):
    """By its end token, and by a stop string of the caller's."""
    last = words[-1]
    with serve(templated(words[9], "never")) as caller:
        body = {**BODY, "max_tokens": 20, "min_tokens": 1}
        if stop:
            body["stop"] = last
        else:
            end = backbone.tokenizer.convert_tokens_to_ids(last)
            monkeypatch.setattr(backbone.model.generation_config, "eos_token_id", end)
        whole = caller.call(CHATS, body)
        (choice,) = whole["choices"]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == words[10]
        assert json.loads(call["function"]["arguments"]) == {"at": "" if stop else last}
        assert whole["usage"]["completion_tokens"] == 12
        assert streamed(caller, body)[1] == "tool_calls"


def test_thoughts_are_apart(serve, words):
    thinking = {"reasoning_content": {"open": words[0], "close": words[2]}}
    with serve(templated("never", "never", **thinking)) as caller:
        (choice,) = caller.call(CHATS, BODY)["choices"]
        assert choice["message"]["reasoning_content"] == words[1]
        assert choice["message"]["content"].split() == words[3:]
        assert "tool_calls" not in choice["message"]
        found, reason = streamed(caller, BODY)
        assert (found["reasoning"].strip(), found["content"].split(), reason) == (words[1], words[3:], "length")


def test_a_response_has_an_item_for_thoughts_words_and_each_call(serve, words):
    """Of what the chat says, whole and in a stream."""
    thinking = {"reasoning_content": {"open": words[0], "close": words[2]}}
    with serve(templated(words[4], words[7], **thinking)) as caller:
        message = caller.call(CHATS, BODY)["choices"][0]["message"]
        tool = {"type": "function", **TOOL["function"]}
        asked = {key: value for key, value in BODY.items() if key not in ("messages", "max_tokens")}
        asked |= {"input": "profit rose", "tools": [tool], "max_output_tokens": 12}
        whole = caller.call("/v1/responses", asked)
        thoughts, said, call, more = whole["output"]
        assert thoughts["content"] == [{"type": "reasoning_text", "text": message["reasoning_content"]}]
        texts = [item["content"][0]["text"] for item in (said, more)]
        assert (texts, " ".join(texts).split()) == ([words[3], " ".join(words[8:])], message["content"].split())
        (called,) = message["tool_calls"]
        assert {"name": call["name"], "arguments": call["arguments"]} == called["function"]
        assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}  # with what stands around them
        events = [json.loads(event) for event in caller.events("/v1/responses", asked)]
        assert [item["type"] for item in events[-1]["response"]["output"]] == [item["type"] for item in whole["output"]]
        kinds = ["reasoning_text", "output_text", "function_call_arguments", "output_text"]
        done = [event["type"] for event in events if event["type"].endswith(("text.done", "arguments.done"))]
        assert done == [f"response.{kind}.done" for kind in kinds]
        pieces = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
        assert "".join(pieces) == "".join(texts)


@pytest.mark.parametrize("closing", [6, None])
def test_a_call_that_cant_be_read_is_text(serve, words, closing):
    """Where it ends, or the text in it; nothing of what was written is lost."""
    with serve(templated(words[3], words[closing] if closing else "never", content="json")) as caller:
        (choice,) = caller.call(CHATS, BODY)["choices"]
        assert choice["message"] == {"role": "assistant", "content": " ".join(words)}
        assert streamed(caller, BODY)[0] == {"content": " ".join(words), "calls": {}}


def test_what_was_read_before_a_call_that_cant_be_is_kept(serve, words):
    """A first call stands, thoughts stay apart, and the second call is text."""
    template = templated(f"(?:{words[3]}|{words[8]})", None)
    call = template["fields"]["tool_calls"]
    del call["close"]
    key, sign, *value = words[5]  # the second call's text has no such sign, and so no such key
    assert sign not in words[10]
    call |= {
        "close_pattern": f"{words[6]}|{words[11]}", "content": "kv-lines",
        "content_args": {"line_sep": " ", "kv_sep": sign, "value_parser": {"name": "text"}},
    }  # fmt: skip
    call["transform"]["function"]["arguments"] = f"{{content.{key}}}"
    template["fields"]["reasoning_content"] = {"open": words[0], "close": words[2]}
    with serve(template) as caller:
        (choice,) = caller.call(CHATS, BODY)["choices"]
        message = choice["message"]
        assert [call["function"]["arguments"] for call in message["tool_calls"]] == ["".join(value)]
        assert message["reasoning_content"] == words[1]
        assert message["content"].split() == words[7:]
        assert streamed(caller, BODY)[0]["content"].split() == words[7:]


def test_nothing_is_taken_apart_for_who_has_no_tools(serve, words):
    with serve(templated(words[3], words[6])) as caller:
        (choice,) = caller.call(CHATS, {**BODY, "tools": []})["choices"]
        assert choice["message"] == {"role": "assistant", "content": " ".join(words)}


@pytest.mark.parametrize("template", [None, {"fields": {}}, templated("(", ")")], ids=["none", "empty", "no pattern"])
def test_a_base_that_doesnt_say_how(serve, words, template, caplog):
    with caplog.at_level(logging.WARNING), serve(template) as caller:
        (choice,) = caller.call(CHATS, BODY)["choices"]
        assert choice["message"] == {"role": "assistant", "content": " ".join(words)}
    assert ("calls of tools come as text" in caplog.text) == (template is not None)
