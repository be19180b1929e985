"""`tool_choice` over HTTP: an answer that has to be calls is calls, by the schemas of the tools."""

import json

import pytest

from http_service import CHATS, TEXTS
from lorary.adapters.server.bodies import ChatBody
from lorary.adapters.server.calls import joined
from lorary.adapters.server.tool_choice import NamedTool, WantedCalls, wanted_calls
from lorary.adapters.server.wanted import WantedReader

pytestmark = pytest.mark.usefixtures("frozen_imports")
MOOD = {
    "type": "object",
    "properties": {"tone": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
    "required": ["tone", "sure"],
    "additionalProperties": False,
}
SIDE = {"$ref": "#/$defs/Side"}
NESTED = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "properties": {"first": SIDE, "rest": {"type": "array", "items": SIDE, "maxItems": 2}},
    "required": ["first", "rest"],
    "additionalProperties": False,
    "$defs": {"Side": {"enum": ["left", "right"]}},
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "rate", "description": "Rate it.", "strict": True, "parameters": MOOD}},
    {"type": "function", "function": {"name": "turn", "parameters": NESTED}},
    {"type": "function", "function": {"name": "stop"}},
]
ASKED = {
    "model": "writer", "messages": [{"role": "user", "content": "who?"}], "max_tokens": 400, "tools": TOOLS,
    "temperature": 2.0,
}  # fmt: skip


def named(name):
    return {"type": "function", "function": {"name": name}}


def calls_of(choice):
    """Its calls' names and arguments; there is nothing else, and each has an id of its own."""
    message = choice["message"]
    assert (choice["finish_reason"], message["content"]) == ("tool_calls", None)
    calls = message["tool_calls"]
    assert len({call["id"] for call in calls}) == len(calls)
    assert {call["type"] for call in calls} == {"function"}
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


def keeps_to_its_schema(name, arguments):
    if name == "rate":
        assert list(arguments) == ["tone", "sure"]
        assert arguments["tone"] in ("good", "bad")
        assert type(arguments["sure"]) is bool
    elif name == "turn":
        assert list(arguments) == ["first", "rest"]
        assert {arguments["first"], *arguments["rest"]} <= {"left", "right"}
    else:
        assert (name, arguments) == ("stop", {})


@pytest.mark.parametrize(("name", "schema"), [("rate", MOOD), ("turn", NESTED)])
def test_a_function_by_its_name(service, caller, name, schema):
    answer = caller.call(CHATS, ASKED | {"tool_choice": named(name), "n": 3, "seed": 1})
    for place, choice in enumerate(answer["choices"]):
        ((called, arguments),) = calls_of(choice)
        assert called == name
        keeps_to_its_schema(name, arguments)
        settings = {"schema": {"type": "object"} | schema, "max_new_tokens": 400, "temperature": 2.0, "do_sample": True}
        text = service.engine.submit("who?", "writer@1", **settings, seed=1 + place).result(20).text
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == text.strip()


@pytest.mark.parametrize("one", [True, False])
def test_any_of_them(caller, one):
    names = set()
    for seed in range(0, 16, 8):
        asked = ASKED | {"tool_choice": "required", "parallel_tool_calls": not one, "n": 8, "seed": seed}
        for choice in caller.call(CHATS, asked)["choices"]:
            if choice["finish_reason"] == "length":  # many calls, of which the last one is cut off
                assert not one
                continue
            calls = calls_of(choice)
            assert len(calls) == 1 if one else 1 <= len(calls) <= 16
            for name, arguments in calls:
                keeps_to_its_schema(name, arguments)
                names.add(name)
    assert names == {"rate", "turn", "stop"}


def streamed(caller, asked):
    """The calls that a stream comes to, as OpenAI's clients put them together, their pieces, and why it ended."""
    choices = [json.loads(event)["choices"][0] for event in list(caller.events(CHATS, asked))[:-1]]
    assert not any(choice["delta"].get("content") for choice in choices)
    calls, pieces = [], 0
    for piece in (piece for choice in choices for piece in choice["delta"].get("tool_calls", ())):
        pieces += 1
        if piece["index"] == len(calls):
            calls.append(piece)
            assert (piece["type"], set(piece)) == ("function", {"index", "id", "type", "function"})
        else:
            assert piece["index"] == len(calls) - 1
            assert (set(piece), set(piece["function"])) == ({"index", "function"}, {"arguments"})
            calls[-1]["function"]["arguments"] += piece["function"]["arguments"]
    return [call["function"] for call in calls], pieces, choices[-1]["finish_reason"]


@pytest.mark.parametrize("asked", [
    {"tool_choice": named("rate"), "seed": 4}, {"tool_choice": named("turn"), "seed": 1},
    {"tool_choice": named("rate"), "seed": 4, "max_tokens": 5},
    {"tool_choice": "required", "seed": 2}, {"tool_choice": "required", "seed": 7, "max_tokens": 90},
], ids=str)  # fmt: skip
def test_a_stream_brings_calls_as_they_are_written(caller, asked):
    """And comes to what a whole answer has."""
    asked = ASKED | asked
    (choice,) = caller.call(CHATS, asked)["choices"]
    calls, pieces, reason = streamed(caller, asked)
    assert (calls, reason) == ([call["function"] for call in choice["message"]["tool_calls"]], choice["finish_reason"])
    assert pieces >= sum(len(call["arguments"]) for call in calls) - len(calls)  # a character is a token here


def test_what_is_cut_off_is_a_call_that_doesnt_end(caller):
    (choice,) = caller.call(CHATS, ASKED | {"tool_choice": named("rate"), "seed": 4, "max_tokens": 5})["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", None)
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "rate"
    assert call["function"]["arguments"].startswith("{")
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(call["function"]["arguments"])
    stopped = ASKED | {"tool_choice": named("rate"), "seed": 4, "stop": "t"}
    (choice,) = caller.call(CHATS, stopped)["choices"]
    assert choice["finish_reason"] == "stop"
    assert streamed(caller, stopped)[::2] == ([choice["message"]["tool_calls"][0]["function"]], "stop")


def test_what_is_cut_off_before_a_function_is_text(caller):
    (choice,) = caller.call(CHATS, ASKED | {"tool_choice": "required", "seed": 4, "max_tokens": 5})["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"].startswith("[")
    assert "tool_calls" not in choice["message"]


def test_a_call_that_is_cut_off_is_an_incomplete_item(caller):
    asked = {"model": "writer", "input": "who?", "tool_choice": {"type": "function", "name": "rate"}}
    asked |= {"max_output_tokens": 5, "tools": [{"type": "function", "name": "rate", "parameters": MOOD}]}
    answer = caller.call("/v1/responses", asked)
    (item,) = answer["output"]
    assert (item["type"], item["status"], answer["status"]) == ("function_call", "incomplete", "incomplete")
    assert item["arguments"].startswith("{")


@pytest.mark.parametrize(("name", "text", "calls"), [
    ("a", ' {"x": "}\\"{\\\\"} ', [('{"x": "}\\"{\\\\"}', True)]),
    ("a", '\n{"x": [{}, [1]]', [('{"x": [{}, [1]]', False)]),
    ("a", "12", [("12", True)]), ("a", "1E", [("1E", False)]), ("a", "nul", [("nul", False)]),
    (None, '[{"name": "a", "arguments": 1', [("a", "1", False)]),
    (None, '[{"name": "a" ,\n "arguments": {"x": [1, {}]}}, {"name":"b","arguments":{} }]',
     [("a", '{"x": [1, {}]}', True), ("b", "{}", True)]),
    (None, '[ {"name": "\\u0061\\"", "arguments":\n  {"name": "b", "arguments": "]"} }]',
     [('a"', '{"name": "b", "arguments": "]"}', True)]),
    (None, '[{"name": "a", "arguments": 12}, {"name": "a", "arguments": "}"}, {"name": "a", "arguments": tr',
     [("a", "12", True), ("a", '"}"', True), ("a", "tr", False)]),
    (None, '[{"name": "a", "arguments": {}}, {"name": "b", "arg', [("a", "{}", True)]),
    (None, '[{"name": "a", "arguments": ', [("a", "", False)]),
], ids=lambda value: str(value)[:30])  # fmt: skip
def test_calls_in_pieces_of_any_size(name, text, calls):
    for size in (1, 2, 3, 7, 1000):
        reader = WantedReader(WantedCalls({}, name))
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        said = [*(reader.read(piece) for piece in pieces), reader.read("", last=True)]
        assert not any(one.text for one in said)
        found = joined(call for one in said for call in one.calls)
        assert [(*((call.name,) if name is None else ()), call.arguments, call.ends) for call in found] == calls
        assert len({call.id for call in found}) == len(found)


def test_none_of_them(caller):
    """The template isn't told of any, and the answer is a text."""
    asked = {key: value for key, value in ASKED.items() if key != "temperature"} | {"max_tokens": 8}
    assert ChatBody.model_validate(asked | {"tool_choice": "none"}).offered is None
    assert ChatBody.model_validate(asked | {"tool_choice": "auto"}).offered == TOOLS
    (choice,) = caller.call(CHATS, asked | {"tool_choice": "none"})["choices"]
    (plain,) = caller.call(CHATS, {key: value for key, value in asked.items() if key != "tools"})["choices"]
    assert choice["message"] == plain["message"]


def deep(levels):
    schema = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(("asked", "message"), [
    ({"tool_choice": "any"}, 'tool_choice: expected "none", "auto", "required", or'),
    ({"tool_choice": {"type": "function"}}, 'tool_choice: expected "none"'),
    ({"tool_choice": named("")}, 'tool_choice: expected "none"'),
    ({"tool_choice": named("sleep")}, "tool_choice: no function 'sleep' among the tools (['rate', 'turn', 'stop'])"),
    ({"tool_choice": named("rate"), "tools": None}, "tool_choice: no function 'rate' among the tools ([])"),
    ({"tool_choice": "required", "tools": []}, 'tool_choice: "required", and there are no tools'),
    ({"tool_choice": "required", "tools": [{"name": "rate"}]}, 'tools: expected {"type": "function", "function":'),
    ({"tool_choice": "required", "tools": [{"type": "function", "function": {"name": 3}}]}, "tools: expected"),
    ({"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
     "tools: parameters of 'a': expected a JSON schema, found []"),
    ({"tool_choice": "required", "tools": [
        {"type": "function", "function": {"name": "a", "parameters": {"type": "object", "not": {}}}}
    ]}, "schema: "),
    ({"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "a", "parameters": deep(400)}}]},
     "schema: recursion limit"),
], ids=lambda value: None if isinstance(value, dict) else value[:40])  # fmt: skip
def test_what_cant_be_called_is_an_error(caller, asked, message):
    assert message in caller.problem(CHATS, ASKED | asked)


def test_a_completion_has_no_tools(caller):
    problem = caller.problem(TEXTS, {"model": "writer", "prompt": "a", "tool_choice": "required"})
    assert "tool_choice isn't served here" in problem


@pytest.mark.parametrize("schema", [None, {"type": "object", "required": ["never"]}])
def test_a_format_is_that_of_texts(caller, schema):
    """Agents send the one that their last answer is to have with each request."""
    wrapped = {"type": "json_schema", "json_schema": {"schema": schema}} if schema else {"type": "text"}
    asked = ASKED | {"tool_choice": named("stop"), "response_format": wrapped}
    assert calls_of(caller.call(CHATS, asked)["choices"][0]) == [("stop", {})]


@pytest.mark.parametrize(("parameters", "schema"), [
    ({"properties": {"a": {}}}, {"type": "object", "properties": {"a": {}}, "additionalProperties": False}),
    ({"properties": {}, "additionalProperties": True},
     {"type": "object", "properties": {}, "additionalProperties": True}),
    ({"properties": {}, "anyOf": []}, {"type": "object", "properties": {}, "anyOf": []}),
    ({"type": "object"}, {"type": "object"}),
    (None, {"type": "object", "properties": {}, "additionalProperties": False}),
], ids=str)  # fmt: skip
def test_a_function_takes_the_arguments_that_it_has(parameters, schema):
    tool = {"type": "function", "function": {"name": "a", "parameters": parameters}}
    wanted = wanted_calls(NamedTool.model_validate(named("a")), [tool], one=True)
    assert (wanted.schema, wanted.name) == (schema, "a")


def test_a_schema_that_python_cant_follow():
    tool = {"type": "function", "function": {"name": "a", "parameters": deep(5000)}}
    with pytest.raises(ValueError, match="tools: nested too deeply"):
        wanted_calls("required", [tool], one=True)
