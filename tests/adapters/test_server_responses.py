"""`/v1/responses` over HTTP: what a chat answers, by OpenAI's newer names, in items and typed events."""

import json

import pytest

from http_service import CHATS, eventually, slow_down
from lorary.adapters.engine.decoding import Decoding
from lorary.adapters.server.responses.body import ResponseBody
from lorary.adapters.server.responses.items import read_input

pytestmark = pytest.mark.usefixtures("frozen_imports")
RESPONSES = "/v1/responses"
ASKED = {"model": "writer", "input": "who?", "max_output_tokens": 12}
CHAT = {"model": "writer", "messages": [{"role": "user", "content": "who?"}], "max_tokens": 12}
MOOD = {
    "type": "object",
    "properties": {"tone": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
    "required": ["tone", "sure"],
    "additionalProperties": False,
}
RATE = {"type": "function", "name": "rate", "description": "Rate it.", "strict": True, "parameters": MOOD}
STOP = {"type": "function", "name": "stop"}
FORMAT = {"format": {"type": "json_schema", "name": "mood", "strict": True, "schema": MOOD}}


def text_of(response):
    """Its only item's text."""
    (item,) = response["output"]
    assert (item["type"], item["role"]) == ("message", "assistant")
    (part,) = item["content"]
    assert (part["type"], part["annotations"]) == ("output_text", [])
    return part["text"]


def events_of(caller, asked):
    """A stream's events, in order, each with its number."""
    events = [json.loads(event) for event in caller.events(RESPONSES, asked)]
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    return events


def told_by(events):
    """The items that events tell of, put together from their pieces, and held against their ends and the last event."""
    items, texts = {}, {}
    for event in events:
        kind, place = event["type"], event.get("output_index")
        if kind == "response.output_item.added":
            items[place], texts[place] = event["item"], ""
            assert event["item"]["status"] == "in_progress"
        elif kind.endswith(".delta"):
            assert event["item_id"] == items[place]["id"]
            texts[place] += event["delta"]
        elif kind.endswith(("text.done", "arguments.done")):
            assert event.get("text", event.get("arguments")) == texts[place]
        elif kind == "response.output_item.done":
            assert event["item"]["id"] == items[place]["id"]
            items[place] = event["item"]
    last = events[-1]["response"]
    assert [items[place] for place in sorted(items)] == last["output"]
    return last, [texts[place] for place in sorted(texts)]


def same(response):
    """A response without what is new in each."""
    fresh = ("id", "created_at", "call_id")
    return {key: value for key, value in response.items() if key not in fresh} | {
        "output": [{key: value for key, value in item.items() if key not in fresh} for item in response["output"]]
    }


def test_a_response_is_what_the_chat_says(caller):
    answer = caller.call(RESPONSES, ASKED | {"metadata": {"a": "b"}})
    chat = caller.call(CHATS, CHAT)
    assert text_of(answer) == chat["choices"][0]["message"]["content"]
    assert (answer["object"], answer["model"], answer["metadata"]) == ("response", "writer", {"a": "b"})
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    used = chat["usage"]
    assert (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]) == (
        used["prompt_tokens"], used["completion_tokens"],
    )  # fmt: skip
    assert answer["usage"]["total_tokens"] == used["total_tokens"]
    assert answer["store"] is False


def test_sampling_is_the_chats(caller):
    sampled = {"temperature": 2.0, "top_p": 0.9, "seed": 3, "top_k": 30, "logit_bias": {"40": -100}}
    answer = caller.call(RESPONSES, ASKED | sampled)
    assert text_of(answer) == caller.call(CHATS, CHAT | sampled)["choices"][0]["message"]["content"]
    assert (answer["temperature"], answer["top_p"]) == (2.0, 0.9)


def test_instructions_and_items_are_turns(caller):
    items = [
        {"role": "user", "content": "a"},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "phase": None, "content": [
            {"type": "output_text", "text": "b", "annotations": [], "logprobs": []}
        ]},
        {"type": "message", "role": "developer", "content": [
            {"type": "input_text", "text": "c"}, {"type": "input_text", "text": "d"}
        ]},
    ]  # fmt: skip
    turns = [("system", "be"), ("user", "a"), ("assistant", "b"), ("system", "cd")]
    chat = CHAT | {"messages": [{"role": role, "content": content} for role, content in turns]}
    answer = caller.call(RESPONSES, ASKED | {"input": items, "instructions": "be"})
    assert text_of(answer) == caller.call(CHATS, chat)["choices"][0]["message"]["content"]
    assert answer["instructions"] == "be"


def test_calls_and_what_came_of_them_are_turns():
    call = {"type": "function_call", "call_id": "1", "name": "rate", "arguments": "{}", "id": "fc_1", "status": "done"}
    thoughts = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None, "content": [
        {"type": "reasoning_text", "text": "hm"}
    ]}  # fmt: skip
    found = read_input([
        {"role": "user", "content": "a"}, thoughts, {"role": "assistant", "content": "b"},
        call, call | {"call_id": "2"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
        call | {"call_id": "3"}, {"role": "assistant", "content": "c"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "in short"}]},
        {"role": "assistant", "content": "d"},
    ])  # fmt: skip

    def calls(*ids):
        return [{"id": one, "type": "function", "function": {"name": "rate", "arguments": "{}"}} for one in ids]

    assert found == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm", "tool_calls": calls("1", "2")},
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "assistant", "content": "", "tool_calls": calls("3")},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": "d", "reasoning_content": "in short"},
    ]


@pytest.mark.parametrize("limit", [12, 300])
def test_a_stream_is_the_same_in_typed_events(caller, limit):
    asked = ASKED | {"max_output_tokens": limit, "text": FORMAT}
    events = events_of(caller, asked)
    kinds = [event["type"] for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    status = "incomplete" if limit == 12 else "completed"
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", f"response.{status}",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    last, (text,) = told_by(events)
    assert (last["output"][0]["status"], last["output"][0]["content"][0]["text"]) == (status, text)
    assert same(last) == same(caller.call(RESPONSES, asked))
    assert events[0]["response"]["id"] == last["id"]
    assert events[0]["response"]["output"] == []


def test_a_schema(caller):
    answer = caller.call(RESPONSES, ASKED | {"text": FORMAT, "max_output_tokens": 300})
    assert answer["status"] == "completed"
    assert list(json.loads(text_of(answer))) == ["tone", "sure"]
    assert answer["text"] == FORMAT
    assert text_of(caller.call(RESPONSES, ASKED | {"text": {"format": {"type": "json_object"}}})).startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "rate"}])
def test_calls_that_are_asked_for(caller, choice):
    asked = ASKED | {
        "tools": [RATE, STOP], "tool_choice": choice, "max_output_tokens": 300, "temperature": 2.0, "seed": 4,
        "parallel_tool_calls": False, "text": FORMAT,
    }  # fmt: skip
    answer = caller.call(RESPONSES, asked)
    (item,) = answer["output"]
    assert (item["type"], item["status"], answer["status"]) == ("function_call", "completed", "completed")
    assert item["name"] in ("rate", "stop")
    assert item["call_id"] != item["id"]
    assert set(json.loads(item["arguments"])) == ({"tone", "sure"} if item["name"] == "rate" else set())
    assert (answer["tool_choice"], [tool["name"] for tool in answer["tools"]]) == (choice, ["rate", "stop"])

    events = events_of(caller, asked)
    last, (arguments,) = told_by(events)
    assert arguments == item["arguments"] == last["output"][0]["arguments"]
    assert {event["type"] for event in events[2:-1]} == {
        "response.output_item.added", "response.function_call_arguments.delta",
        "response.function_call_arguments.done", "response.output_item.done",
    }  # fmt: skip
    assert same(last) == same(answer)


def test_how_likely_the_tokens_were(caller):
    asked = ASKED | {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = caller.call(RESPONSES, asked)
    told = answer["output"][0]["content"][0]["logprobs"]
    chat = caller.call(CHATS, CHAT | {"logprobs": True, "top_logprobs": 2})["choices"][0]["logprobs"]["content"]
    assert [(one["token"], one["logprob"]) for one in told] == [(one["token"], one["logprob"]) for one in chat]
    assert [len(one["top_logprobs"]) for one in told] == [2] * 12
    events = events_of(caller, asked)
    pieces = [one for event in events if event["type"] == "response.output_text.delta" for one in event["logprobs"]]
    assert pieces == told
    assert caller.call(RESPONSES, ASKED | {"top_logprobs": 2})["output"][0]["content"][0]["logprobs"] == told


@pytest.mark.parametrize("asked", [
    {"store": False, "background": False, "previous_response_id": None, "conversation": None, "truncation": "disabled"},
    {"include": [], "tools": [], "tool_choice": "auto", "text": {"format": {"type": "text"}, "verbosity": "medium"}},
    {"user": "me", "service_tier": "auto", "safety_identifier": "a", "prompt_cache_key": "b", "max_tool_calls": 3},
    {"reasoning": {"effort": None, "summary": None}, "include": ["reasoning.encrypted_content"], "metadata": None},
    {"stream_options": {"include_obfuscation": False}, "tools": None, "top_logprobs": 0},
], ids=str)  # fmt: skip
def test_what_asks_for_nothing_passes(asked):
    body = ResponseBody.model_validate({"model": "a", "input": "b", **asked})
    assert body.chat.settings() == {}
    assert body.chat.likeliest is None


def test_a_caller_who_goes_away_frees_what_it_held(service, caller, monkeypatch):
    engine = service.engine
    slow_down(monkeypatch, engine)
    before = engine.stats().cancelled
    connection = caller.send_only(RESPONSES, ASKED | {"stream": True, "max_output_tokens": 300})
    eventually(lambda: engine.stats().running == 1)
    connection.close()
    eventually(lambda: engine.stats().running == 0)
    assert engine.stats().cancelled == before + 1


def test_what_goes_wrong_in_a_stream_is_its_last_event(caller, monkeypatch):
    def fail(decoding, logits, sequence):
        raise ValueError("no token")

    monkeypatch.setattr(Decoding, "choose", fail)
    last = events_of(caller, ASKED | {"temperature": 1.0})[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert "choosing a token failed: no token" in last["response"]["error"]["message"]
    assert "no token" in caller.problem(RESPONSES, ASKED | {"temperature": 1.0}, code=500)
