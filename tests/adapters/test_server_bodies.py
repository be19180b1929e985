"""What callers of the HTTP service may send: clients' habits pass, and a mistake costs no more than a look."""

import pytest
from pydantic import ValidationError

from lorary.adapters.server.bodies import ChatBody, CompletionBody, PredictBody
from lorary.adapters.server.predictions import demand_parameters
from lorary.adapters.server.problems import Refusal, problem
from lorary.hub.errors import UsageError

TURN = {"role": "user", "content": "a"}


@pytest.mark.parametrize("asked", [
    {"frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "best_of": 1.0, "logprobs": False},
    dict.fromkeys(["functions", "audio", "prediction", "reasoning_effort", "verbosity", "web_search_options"]),
    {"logprobs": None, "top_logprobs": 0},
    {"tool_choice": "none"}, {"tool_choice": "none", "tools": [{"a": 1}]}, {"tool_choice": "auto", "tools": [{"a": 1}]},
    {"tool_choice": None, "parallel_tool_calls": False},
], ids=str)  # fmt: skip
def test_what_asks_for_nothing_passes(asked):
    """As clients send it that know only their own settings' defaults."""
    body = ChatBody.model_validate({"model": "a", "messages": [TURN], **asked})
    assert body.settings() == {}


@pytest.mark.parametrize("asked", [
    {"frequency_penalty": 2.1}, {"frequency_penalty": False}, {"logprobs": 0}, {"top_logprobs": 1}, {"echo": 0},
    {"verbosity": "low"}, {"tool_choice": "required"}, {"stream_options": {"include_usage": 1}},
    {"repetition_penalty": float("inf")}, {"repetition_penalty": float("nan")},
    {"best_of": 2.0}, {"made_up": None},
], ids=str)  # fmt: skip
def test_what_asks_for_something_is_refused(asked):
    with pytest.raises(ValidationError, match=next(iter(asked))):
        ChatBody.model_validate({"model": "a", "messages": [TURN], **asked})


def test_a_developer_is_the_system():
    """As in the rows that adapters are trained on; hardly a template knows the newer name."""
    turns = [{"role": "developer", "content": [{"type": "text", "text": "be good"}]}, TURN]
    body = ChatBody.model_validate({"model": "a", "messages": turns})
    assert body.conversation() == [{"role": "system", "content": "be good"}, TURN]


def test_how_much_to_think_is_the_templates_to_be_told():
    asked = {"model": "a", "messages": [TURN], "reasoning_effort": "low"}
    assert ChatBody.model_validate(asked).told["chat_template_kwargs"] == {"reasoning_effort": "low"}
    asked["chat_template_kwargs"] = {"reasoning_effort": "high", "loud": True}
    assert ChatBody.model_validate(asked).told["chat_template_kwargs"] == asked["chat_template_kwargs"]


def test_all_of_the_vocabulary_in_the_spelling_of_vllm():
    body = CompletionBody.model_validate({"model": "a", "prompt": "b", "top_k": -1})
    assert body.settings() == {"top_k": 0, "do_sample": True}


@pytest.mark.parametrize(("temperature", "settings"), [
    (0, {"do_sample": False}), (1e-40, {"do_sample": False}), (1e-3, {"do_sample": True, "temperature": 1e-3}),
])  # fmt: skip
def test_a_temperature_of_next_to_nothing_is_none(temperature, settings):
    """Scores divided by it would be no numbers any more."""
    body = CompletionBody.model_validate({"model": "a", "prompt": "b", "temperature": temperature, "top_p": 0.5})
    assert body.settings() == settings | ({"top_p": 0.5} if settings["do_sample"] else {})


@pytest.mark.parametrize("asked", [
    {"temperature": 1e-320}, {"length_penalty": 1e308}, {"length_penalty": -1e308}, {"max_new_tokens": 10**6},
], ids=str)  # fmt: skip
def test_what_no_text_can_be_generated_with(asked):
    """It would fail in the middle, as if the service were at fault."""
    with pytest.raises(Refusal, match=rf"400: parameters.{next(iter(asked))}: expected"):
        demand_parameters(asked, ["text-generation"])


@pytest.mark.parametrize("asked", [{"temperature": 0.5}, {"temperature": 1}, {"length_penalty": -2.0}], ids=str)
def test_what_texts_can_be_generated_with(asked):
    demand_parameters(asked, ["text-generation"])


@pytest.mark.parametrize(("kind", "body"), [
    (ChatBody, {"model": "a", "messages": [1] * 50_000}),
    (ChatBody, {"model": "a", "messages": [{"role": "user", "content": [1] * 50_000}]}),
    (ChatBody, {"model": "a", "messages": [TURN], "tools": [1] * 50_000}),
    (ChatBody, {"model": "a", "messages": [TURN], "chat_template_kwargs": {f"a{place}": 1 for place in range(50_000)}}),
    (CompletionBody, {"model": "a", "prompt": [1.0] * 50_000}),
    (CompletionBody, {"model": "a", "prompt": "b", "stop": [1] * 50_000}),
    (CompletionBody, {"model": "a", "prompt": "b", "logit_bias": {f"{place}": None for place in range(50_000)}}),
    (CompletionBody, {"model": "a", "prompt": "b", "logit_bias": {f"+{place}": 1 for place in range(9_000)}}),
    (PredictBody, {"model": [1] * 50_000, "inputs": "a"}),
    (PredictBody, {"model": "a", "inputs": [1] * 50_000}),
    (PredictBody, {"model": "a", "inputs": "b", **{f"{place}": 1 for place in range(50_000)}}),
], ids=[*"123456789", "10", "11"])  # fmt: skip
def test_many_mistakes_are_no_work(kind, body):
    """A body of some megabytes would otherwise keep everybody waiting while millions of errors are put together."""
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(body)
    assert refused.value.error_count() < 300


def test_a_part_of_another_type_is_quoted_in_short():
    turn = {"role": "user", "content": [{"type": "image" * 50_000}]}
    with pytest.raises(ValueError, match="a part of type 'imageimage") as refused:
        ChatBody.model_validate({"model": "a", "messages": [turn]}).conversation()
    assert len(str(refused.value)) < 200


def test_a_message_can_be_sent_whatever_it_quotes():
    assert problem(UsageError("no \ud800 here"))[1]["error"]["message"] == r"no \ud800 here"
