"""What `/v1/responses` refuses, by name and before anything is generated."""

import json

import pytest
from pydantic import ValidationError

from lorary.adapters.server.responses.body import ResponseBody

pytestmark = pytest.mark.usefixtures("frozen_imports")
RESPONSES = "/v1/responses"
ASKED = {"model": "writer", "input": "who?", "max_output_tokens": 12}
STOP = {"type": "function", "name": "stop"}


@pytest.mark.parametrize(("asked", "message"), [
    ({"previous_response_id": "resp_1"}, "previous_response_id isn't served here; leave it out"),
    ({"store": True}, "store isn't served here; leave it out, or pass False"),
    ({"background": True}, "background isn't served"),
    ({"conversation": "conv_1"}, "conversation isn't served"),
    ({"truncation": "auto"}, "truncation isn't served here; leave it out, or pass 'disabled'"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt isn't served"),
    ({"max_tokens": 3}, "max_tokens: no such field"),
    ({"messages": []}, "messages: no such field"),
    ({"input": None}, "input: expected a text, or a list of items, neither of them empty, found None"),
    ({"input": []}, "input: expected a text"),
    ({"input": ""}, "input: expected a text"),
    ({"input": [3]}, "input: item 0: expected an object, found 3"),
    ({"input": [{"role": "user", "content": "a"}, {"type": "item_reference", "id": "1"}]},
     "input: item 1: the type 'item_reference' isn't served here; expected one of message, function_call,"),
    ({"input": [{"type": [], "role": "user"}]}, "item 0: the type [] isn't served"),
    ({"input": [{"role": "king", "content": "a"}]}, "item 0: role: expected one of user, assistant"),
    ({"input": [{"role": ["user"], "content": "a"}]}, "item 0: role: expected one of user, assistant"),
    ({"input": [{"role": "user", "content": "a", "phase": "commentary"}]}, "item 0: 'phase': no such field"),
    ({"input": [{"role": "user"}]}, "item 0: expected a text, or a list of parts, in a message of user, found None"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
     "item 0: a part of the type 'input_image' in a message of user; only text is read here"),
    ({"input": [{"role": "user", "content": [{"type": ["input_text"]}]}]}, "item 0: a part of the type ['input_text']"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "item 0: text: expected a text, found None"),
    ({"input": [{"type": "function_call_output", "call_id": "1", "output": "a"}]},
     "item 0: no function_call before it has the call_id '1'"),
    ({"input": [{"type": "function_call", "call_id": "1", "name": "a", "arguments": {}}]},
     "item 0: arguments: expected a text, found {}"),
    ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "abc"}]}, "item 0: encrypted_content:"),
    ({"tools": [{"type": "web_search"}]}, "tools of the type 'web_search' aren't served here; expected functions"),
    ({"tools": [{"type": "function", "function": {"name": "a"}}]}, "tools.0.name: Field required"),
    ({"tools": [STOP | {"defer_loading": True}]}, "defer_loading isn't served here"),
    ({"tool_choice": "any"}, 'tool_choice: expected "none", "auto", "required", or {"type": "function", "name": ...}'),
    ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice: expected"),
    ({"tool_choice": {"type": "function", "name": "a"}}, "tool_choice: no function 'a' among the tools ([])"),
    ({"include": ["file_search_call.results"]}, "include: 'file_search_call.results' isn't served here"),
    ({"include": [[]]}, "include: [] isn't served here"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "schema comes with the type"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type: Input should be 'text'"),
    ({"text": {"verbosity": "low"}}, "verbosity isn't served here; leave it out, or pass 'medium'"),
    ({"reasoning": {"summary": "auto"}}, "summary isn't served here"),
    ({"reasoning": {"effort": "low"}}, "reasoning_effort"),
    ({"top_logprobs": 21}, "top_logprobs: Input should be less than or equal to 20, found 21"),
    ({"max_output_tokens": 0}, "max_output_tokens: Input should be greater"),
    ({"metadata": {"a": 1}}, "metadata.a: Input should be a valid string"),
    ({"metadata": {"a": "b" * 513}}, "metadata.a: String should have at most 512"),
    ({"metadata": {f"{place}": "a" for place in range(17)}}, "metadata: Dictionary should have at most 16 items"),
    ({"metadata": {"a": "\ud800"}}, "metadata.a: Input should be a valid string"),
    ({"tools": [STOP | {"parameters": {"a": float("nan")}}]}, "tools, or text.format: expected what"),
    ({"text": {"format": {"type": "json_schema", "schema": {"a": "\ud800"}}}}, "tools, or text.format: expected what"),
    ({"instructions": "a\ud800"}, "instructions, tools, or text.format: expected what"),
    ({"stream": "yes"}, "stream: Input should be a valid boolean"),
], ids=lambda value: str(value)[:60])  # fmt: skip
def test_what_is_refused(service, caller, asked, message):
    told = caller.problem(RESPONSES, ASKED | asked)
    assert message in told
    assert len(told) < 400
    assert service.engine.stats().running == 0


def test_many_mistakes_are_no_work():
    for asked in (
        {"input": [1] * 50_000},
        {"input": "a", "tools": [1] * 50_000},
        {"input": "a", "include": [1] * 9999},
    ):
        with pytest.raises(ValidationError) as refused:
            ResponseBody.model_validate({"model": "a", **asked})
        assert refused.value.error_count() < 300


@pytest.mark.parametrize("asked", [{"input": "@"}, {"input": "a", "text": {"format": {"type": "text", "schema": "@"}}}])
def test_what_is_nested_without_end_is_refused(caller, asked):
    deep = "[" * 20_000 + "]" * 20_000
    assert caller.problem(RESPONSES, json.dumps(ASKED | asked).replace('"@"', deep).encode())


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_nested_too_deeply_to_be_told_again(caller, stream):
    """It could still be read; and the answer that repeats it couldn't be written."""
    for levels in range(930, 980, 3):
        deep = '{"a":' * levels + "1" + "}" * levels
        asked = json.dumps(
            ASKED | {"stream": stream, "tools": [STOP | {"parameters": "@"}], "tool_choice": "none"}
        ).replace('"@"', deep)
        response, connection = caller.send("POST", RESPONSES, asked.encode())
        assert response.status in (200, 400)
        assert response.status == 400 or b"incomplete" in response.read()
        connection.close()


@pytest.mark.parametrize("path", [f"{RESPONSES}/resp_1", f"{RESPONSES}/resp_1/input_items"])
def test_no_response_is_kept(caller, path):
    assert "no response is kept" in caller.problem(path, code=404)
