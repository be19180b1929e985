"""What callers send: OpenAI's requests as far as they are served, and predictions.

A field that isn't known is an error, and so is a known one of OpenAI's that isn't served, unless it asks for nothing:
a setting that does nothing without a word would be worse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, PrivateAttr, model_validator

from lorary.adapters.arguments import shown
from lorary.adapters.engine.penalties import MOST_PENALTY
from lorary.adapters.engine.values import MOST_LOGPROBS
from lorary.adapters.server.response_format import ResponseFormat
from lorary.adapters.server.tool_choice import ToolChoice, WantedCalls, wanted_calls

Text = Annotated[str, Field(min_length=1)]
MOST_ROWS = 256  # of a request, and the most texts that one may have made
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_ROWS)]
Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]  # one mistake is told; millions would take minutes
Penalty = Annotated[float, Field(ge=-MOST_PENALTY, le=MOST_PENALTY)]

_ABOUT_THE_CALLER = frozenset((
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
))  # fmt: skip
"""Fields of OpenAI's that change no answer here, whatever they hold."""

_ASKS_FOR_NOTHING: Mapping[str, Any] = {
    "best_of": 1, "echo": False, "function_call": "auto", "modalities": ["text"], "suffix": "",
    "tool_choice": "auto", "audio": None, "functions": None, "prediction": None,
    "reasoning_effort": None, "verbosity": None, "web_search_options": None, "dimensions": None,
}  # fmt: skip
"""Fields of OpenAI's that aren't served, and the value (besides null) with which they ask for nothing."""

COLDEST = 1e-5  # temperature; scores divided by less may be no numbers any more, and the likeliest token is certain
_MOST_FIELDS = 100  # of a body; millions of unknown ones would take minutes to be told
_MOST_BIASES = 10_000  # of a request, each of whose texts goes through them
_TOKEN = re.compile("0|-?[1-9][0-9]{0,99}")  # one spelling for each, so that no two names mean the same

EXPECTED: Mapping[str, str] = {
    "prompt": "a text, or a list of 1 to 256 texts, none of them empty",
    "input": "a text, or a list of 1 to 256 texts, none of them empty",
    "inputs": "a text, an object with the task's columns, or a list of 1 to 256 of these, none of them empty",
    "model": "a model's name, or for /v1/predict a list of 1 to 256 names and nulls",
    "stop": "a text, or a list of at most 16 texts, none of them empty",
    "content": "a text, or a list of parts of the type text",
    "tool_choice": '"none", "auto", "required", or {"type": "function", "function": {"name": ...}}',
}
"""What may stand in fields of several kinds, in place of what is wrong with each of the kinds."""


class Body(BaseModel):
    """A request's body; fields that ask for nothing are taken out before it is read."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        if len(body) > _MOST_FIELDS:
            raise ValueError(f"{len(body)} fields; expected at most {_MOST_FIELDS}")
        kept = {}
        for name, value in body.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name in _ASKS_FOR_NOTHING:
                if not _asks_for_nothing(name, value):
                    neutral = _ASKS_FOR_NOTHING[name]
                    instead = "" if neutral is None else f", or pass {neutral!r}"
                    raise ValueError(f"{name} isn't served here; leave it out{instead}")
            elif name not in _ABOUT_THE_CALLER:
                kept[name] = value
        return kept


class StreamOptions(BaseModel):
    """What a stream says besides the text."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


def _by_token(given: Any) -> dict[int, Any]:
    """Numbers by token ids, which JSON writes as texts; the engine knows which tokens and numbers there may be.

    Raises:
        ValueError: it is nothing of the kind.
    """
    if not isinstance(given, dict):
        raise ValueError(f"expected an object of token ids and numbers, found {shown(given)}")
    if len(given) > _MOST_BIASES:
        raise ValueError(f"{len(given)} tokens; expected at most {_MOST_BIASES}")
    for token in given:
        if not _TOKEN.fullmatch(token):
            raise ValueError(f'{shown(token)} is no token id; expected a whole number, as in {{"50256": -100}}')
    return {int(token): bias for token, bias in given.items()}


Biases = Annotated[dict[int, Any], PlainValidator(_by_token, json_schema_input_type=dict[str, float])]


class Sampling(Body):
    """How new tokens are chosen.

    With any of ``temperature`` (above 0), ``top_p``, ``top_k``, ``min_p`` and ``seed`` they are sampled; with none of
    them they are chosen as the adapter or the base says, which is mostly greedily.
    """

    model: Text
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16, fail_fast=True)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def settings(self) -> dict[str, Any]:
        """The arguments of :meth:`Engine.submit` that this asks for."""
        greedy = self.temperature is not None and self.temperature < COLDEST
        given = {
            "temperature": None if greedy else self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,  # all of the vocabulary, as vLLM and transformers write it
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty or None,
            "presence_penalty": self.presence_penalty or None,
            "logit_bias": self.logit_bias or None,
            "max_new_tokens": self.max_tokens,
            "min_new_tokens": self.min_tokens,
            "schema": self.response_format and self.response_format.wanted,
        }
        settings = {name: value for name, value in given.items() if value is not None}
        if greedy:
            settings = {name: value for name, value in settings.items() if name not in ("top_p", "top_k", "min_p")}
            return settings | {"do_sample": False}
        sampled = any(name in settings for name in ("temperature", "top_p", "top_k", "min_p")) or self.seed is not None
        return settings | ({"do_sample": True} if sampled else {})


class CompletionBody(Sampling):
    """``POST /v1/completions``: one prompt or several, each put the way its adapter was trained."""

    wanted: ClassVar[None] = None  # no calls: there are no tools

    prompt: Text | Texts
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @property
    def likeliest(self) -> int | None:
        """Of how many of the likeliest tokens to tell with each; None: of none, not of the token itself either."""
        return self.logprobs


class Message(BaseModel):
    """A turn of a conversation, as its chat template reads it."""

    model_config = ConfigDict(extra="allow")

    role: Text
    content: str | Objects | None = None


class ChatBody(Sampling):
    """``POST /v1/chat/completions``: a conversation.

    ``chat_template_kwargs``: what else the chat template is told, such as ``{"enable_thinking": false}``.
    ``parallel_tool_calls``: false keeps ``tool_choice: "required"`` to one call.
    """

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: Objects | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    _wanted: WantedCalls | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _told_of_what_it_asks_for(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is told with logprobs: true; send both, or neither")
        self._wanted = wanted_calls(self.tool_choice, self.tools, one=self.parallel_tool_calls is False)
        if self._wanted and self.response_format and self.response_format.wanted:
            raise ValueError("response_format and tool_choice: an answer is a text or calls; leave one of them out")
        return self

    @property
    def wanted(self) -> WantedCalls | None:
        """The calls that the answer has to be, None where it may be any text."""
        return self._wanted

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The tools that the chat template is told of."""
        return None if self.tool_choice == "none" else self.tools

    @property
    def likeliest(self) -> int | None:
        """As of a completion."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def settings(self) -> dict[str, Any]:
        """The arguments of the engine; OpenAI has two names for the most new tokens, of which this one is newer."""
        newer, wanted = self.max_completion_tokens, self.wanted
        given = {"max_new_tokens": newer, "schema": wanted and wanted.schema}
        return super().settings() | {name: value for name, value in given.items() if value is not None}

    def conversation(self) -> list[dict[str, Any]]:
        """The turns; a content in parts is put together.

        Raises:
            ValueError: a part that isn't text.
        """
        return [_turn(message) for message in self.messages]


class EmbeddingBody(Body):
    """``POST /v1/embeddings``: texts to embed."""

    model: Text
    input: Text | Texts
    encoding_format: Literal["float", "base64"] | None = None


class PredictBody(Body):
    """``POST /v1/predict``: rows for adapters of any task, in one batch.

    ``model`` is one for all rows or one for each, None (null) being the bare backbone; ``inputs`` are what
    :meth:`Backbone.predict` takes, ``parameters`` those of the tasks' pipelines.
    """

    model: Text | Annotated[list[Text | None], Field(min_length=1, max_length=MOST_ROWS)]
    inputs: Text | dict[str, Any] | Annotated[list[Text | dict[str, Any]], Field(min_length=1, max_length=MOST_ROWS)]
    parameters: dict[str, Any] = Field(default_factory=dict)


def _asks_for_nothing(name: str, value: Any) -> bool:
    neutral = _ASKS_FOR_NOTHING[name]
    kinds = isinstance(value, bool) == isinstance(neutral, bool)  # 0.0 is 0, but neither is False
    return value is None or (kinds and value == neutral)


def _turn(message: Message) -> dict[str, Any]:
    turn = message.model_dump(exclude_unset=True)
    if isinstance(message.content, list):
        for part in message.content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError(
                    f"a part of type {part.get('type')!r} in a message of {message.role}; only text is read here"
                )
        turn["content"] = "".join(part["text"] for part in message.content)
    return turn
