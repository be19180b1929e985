"""`response_format` over HTTP: the engine's structures, by OpenAI's names and in its shapes."""

import json

import pytest

from http_service import CHATS, TEXTS, piece, written

pytestmark = pytest.mark.usefixtures("frozen_imports")
TEXT = {"model": "writer", "prompt": "who?", "max_tokens": 300}
CHAT = {"model": "writer", "messages": [{"role": "user", "content": "who?"}], "max_tokens": 300}
BOTH = pytest.mark.parametrize(("path", "body"), [(TEXTS, TEXT), (CHATS, CHAT)], ids=["completion", "chat"])
SCHEMA = {
    "type": "object",
    "properties": {"tone": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
    "required": ["tone", "sure"],
    "additionalProperties": False,
}
WRAPPED = {"type": "json_schema", "json_schema": {"name": "tone", "strict": True, "schema": SCHEMA}}


def keeps_to_the_schema(text):
    found = json.loads(text)
    assert list(found) == ["tone", "sure"]
    assert found["tone"] in ("good", "bad")
    assert type(found["sure"]) is bool


@BOTH
def test_a_schema(service, caller, path, body):
    asked = body | {"response_format": WRAPPED, "temperature": 2.0, "n": 4, "seed": 1}
    answer = caller.call(path, asked)
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop"] * 4
    for place, choice in enumerate(answer["choices"]):
        keeps_to_the_schema(written(choice))
        settings = {"schema": SCHEMA, "max_new_tokens": 300, "do_sample": True, "temperature": 2.0, "seed": 1 + place}
        assert service.engine.submit("who?", "writer@1", **settings).result(20).text == written(choice)
    assert len({written(choice) for choice in answer["choices"]}) > 1
    events = [json.loads(event)["choices"] for event in list(caller.events(path, asked | {"n": 1}))[:-1]]
    assert "".join(piece(choices[0]) for choices in events if choices) == written(answer["choices"][0])


@BOTH
def test_a_json_object(caller, path, body):
    for seed in range(4):
        asked = body | {"response_format": {"type": "json_object"}, "temperature": 1.5, "seed": seed}
        (choice,) = caller.call(path, asked)["choices"]
        assert written(choice).startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(written(choice)), dict)


@BOTH
def test_what_asks_for_any_text_changes_nothing(caller, path, body):
    plain = written(caller.call(path, body | {"max_tokens": 12})["choices"][0])
    for asked in (None, {"type": "text"}):
        same = caller.call(path, body | {"max_tokens": 12, "response_format": asked})
        assert written(same["choices"][0]) == plain


@pytest.mark.parametrize(("asked", "message"), [
    ("json", "response_format: Input should be"),
    ({}, "response_format.type: Field required"),
    ({"type": "xml"}, "response_format.type: Input should be 'text', 'json_object' or 'json_schema', found 'xml'"),
    ({"type": "json_schema"}, "response_format: json_schema comes with the type"),
    ({"type": "json_object", "json_schema": {"schema": {}}}, "response_format: json_schema comes with the type"),
    ({"type": "json_schema", "json_schema": {"name": "tone"}}, "response_format.json_schema.schema: Field required"),
    ({"type": "json_schema", "json_schema": {"schema": []}}, "response_format.json_schema.schema: Input should be"),
    ({"type": "text", "more": 1}, "response_format.more: no such field"),
    ({"type": "json_schema", "json_schema": {"schema": {"type": "nope"}}}, "schema: Invalid type: nope"),
    ({"type": "json_schema", "json_schema": {"schema": {"$ref": "file:///etc/passwd"}}}, "schema: "),
    ({"type": "json_schema", "json_schema": {"schema": {"pattern": "(", "type": "string"}}}, "schema: "),
    ({"type": "json_schema", "json_schema": {"schema": {"enum": ["\ud800"]}}}, "schema: "),
], ids=lambda value: str(value)[:40])  # fmt: skip
@BOTH
def test_what_is_refused(service, caller, path, body, asked, message):
    told = caller.problem(path, body | {"response_format": asked})
    assert message in told
    assert len(told) < 300
    assert service.engine.stats().running == 0


def test_a_deep_schema_is_refused(caller):
    deep = '{"anyOf": [' * 2000 + "{}" + "]}" * 2000
    sent = json.dumps(TEXT | {"response_format": WRAPPED}).replace(json.dumps(SCHEMA), deep)
    assert deep in sent
    assert caller.problem(TEXTS, sent.encode())
    keeps_to_the_schema(caller.call(TEXTS, TEXT | {"response_format": WRAPPED})["choices"][0]["text"])
