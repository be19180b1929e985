"""What callers send: OpenAI's requests as far as they are served, and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, PrivateAttr, model_validator

from lorary.adapters.arguments import shown
from lorary.adapters.engine.values import MOST_LOGPROBS
from lorary.adapters.server.sampling import MOST_FIELDS, Body, Sampling, Text
from lorary.adapters.server.tool_choice import ToolChoice, WantedCalls, wanted_calls

MOST_ROWS = 256  # of a request, and the most texts that one may have made
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_ROWS)]
Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]  # one mistake is told; millions would take minutes

EXPECTED: Mapping[str, str] = {
    "input": "a text, or a list of 1 to 256 texts, none of them empty",
    "inputs": "a text, an object with the task's columns, or a list of 1 to 256 of these, none of them empty",
    "model": "a model's name, or for /v1/predict a list of 1 to 256 names and nulls",
    "stop": "a text, or a list of at most 16 texts, none of them empty",
    "content": "a text, or a list of parts of the type text",
    "tool_choice": '"none", "auto", "required", or {"type": "function", "function": {"name": ...}}',
}
"""What may stand in fields of several kinds, in place of what is wrong with each of the kinds."""


Prompt = str | list[int]


def _prompts(given: Any) -> list[Prompt]:
    """One prompt or several, texts or token ids, of which the engine knows which there are."""
    prompts = [given] if isinstance(given, str) or _are_tokens(given) else given
    several = isinstance(prompts, list) and 1 <= len(prompts) <= MOST_ROWS
    if several and (all(map(_is_text, prompts)) or all(map(_are_tokens, prompts))):
        return list(prompts)
    raise ValueError(
        f"expected a text, the token ids of one, or a list of 1 to {MOST_ROWS} of either, none of them empty"
    )


def _is_text(prompt: Any) -> bool:
    return isinstance(prompt, str) and bool(prompt)


def _are_tokens(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)


class CompletionBody(Sampling):
    """``POST /v1/completions``: one prompt or several, each put the way its adapter was trained, or in token ids."""

    wanted: ClassVar[None] = None  # no calls: there are no tools

    prompt: Annotated[list[Prompt], PlainValidator(_prompts, json_schema_input_type=Prompt | list[Prompt])]
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

    ``chat_template_kwargs``: what else the chat template is told, such as ``{"enable_thinking": false}``;
    ``reasoning_effort`` is one of these.
    ``parallel_tool_calls``: false keeps ``tool_choice: "required"`` to one call.
    """

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: Objects | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=MOST_FIELDS)] | None = None
    reasoning_effort: Text | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    _wanted: WantedCalls | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _told_of_what_it_asks_for(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is told with logprobs: true; send both, or neither")
        self._wanted = wanted_calls(self.tool_choice, self.tools, one=self.parallel_tool_calls is False)
        return self

    @property
    def wanted(self) -> WantedCalls | None:
        """The calls that the answer has to be, None where it may be any text."""
        return self._wanted

    @property
    def told(self) -> dict[str, Any]:
        """What the chat template is told beside the conversation, as :meth:`Engine.submit` takes it."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return {"tools": self.offered, "chat_template_kwargs": effort | (self.chat_template_kwargs or {})}

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The tools that the chat template is told of."""
        return None if self.tool_choice == "none" else self.tools

    @property
    def likeliest(self) -> int | None:
        """As of a completion."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def settings(self) -> dict[str, Any]:
        """The arguments of the engine; OpenAI has two names for the most new tokens, of which this one is newer.

        ``response_format`` is that of texts: agents send it with each request, also where calls are wanted.
        """
        newer, wanted = self.max_completion_tokens, self.wanted
        given = {"max_new_tokens": newer, "schema": wanted and wanted.schema}
        return super().settings() | {name: value for name, value in given.items() if value is not None}

    def conversation(self) -> list[dict[str, Any]]:
        """The turns; a content in parts is put together, and a developer's turn is a system turn, as in training.

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


def _turn(message: Message) -> dict[str, Any]:
    turn = message.model_dump(exclude_unset=True)
    if message.role == "developer":  # OpenAI's newer name, which hardly a template knows
        turn["role"] = "system"
    if isinstance(message.content, list):
        for part in message.content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError(
                    f"a part of type {shown(part.get('type'))} in a message of {message.role}; only text is read here"
                )
        turn["content"] = "".join(part["text"] for part in message.content)
    return turn
