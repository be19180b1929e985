"""What callers send to ``/v1/responses``, and the chat that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, PrivateAttr, ValidationError, model_validator

from lorary.adapters.arguments import shown
from lorary.adapters.engine.values import MOST_LOGPROBS
from lorary.adapters.server.bodies import ChatBody
from lorary.adapters.server.responses.items import read_input
from lorary.adapters.server.sampling import MOST_FIELDS, Body, Choosing, Text

_PROBABILITIES = "message.output_text.logprobs"
_INCLUDED = (_PROBABILITIES, "reasoning.encrypted_content")  # thoughts come in the open, which serves the same end
_CHOICES = ("none", "auto", "required")
_AS_IN_CHATS = (
    "model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
    "logit_bias", "seed", "min_tokens", "stream", "parallel_tool_calls", "chat_template_kwargs",
)  # fmt: skip


class FunctionTool(Body):
    """A function that may be called; other tools would have to be run here."""

    passed_over: ClassVar[frozenset[str]] = frozenset()
    asks_for_nothing: ClassVar[Mapping[str, Any]] = {
        "allowed_callers": ["direct"], "async": False, "defer_loading": False, "output_schema": None,
    }  # fmt: skip

    type: Literal["function"]
    name: Text
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_a_type_that_is_served(cls, tool: Any) -> Any:
        if isinstance(tool, dict) and isinstance(kind := tool.get("type"), str) and kind != "function":
            raise ValueError(f"tools of the type {shown(kind)} aren't served here; expected functions")
        return tool

    def of_chat(self) -> dict[str, Any]:
        """The same in the form that chats have, and chat templates are told."""
        own = self.model_dump(exclude={"type"}, exclude_none=True)
        return {"type": "function", "function": own}


class TextFormat(Body):
    """What a text has to be, as of ``response_format``; a schema stands here without a wrapping of its own."""

    passed_over: ClassVar[frozenset[str]] = frozenset()
    asks_for_nothing: ClassVar[Mapping[str, Any]] = {}

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    wanted: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _with_its_schema(self) -> TextFormat:
        if (self.type == "json_schema") != (self.wanted is not None):
            raise ValueError('schema comes with the type "json_schema", and with no other')
        return self

    def of_chat(self) -> dict[str, Any]:
        """The same as a chat's ``response_format``."""
        return {"type": self.type} | ({} if self.wanted is None else {"json_schema": {"schema": self.wanted}})

    def shown(self) -> dict[str, Any]:
        """The same as it was sent."""
        return self.model_dump(by_alias=True, exclude_none=True)


class TextConfig(Body):
    """``text``: how the text is to be."""

    passed_over: ClassVar[frozenset[str]] = frozenset()
    asks_for_nothing: ClassVar[Mapping[str, Any]] = {"verbosity": "medium"}

    format: TextFormat | None = None


class Reasoning(Body):
    """``reasoning``: how much to think, of which the chat template is told as ``reasoning_effort``."""

    passed_over: ClassVar[frozenset[str]] = frozenset()
    asks_for_nothing: ClassVar[Mapping[str, Any]] = {
        "summary": None, "generate_summary": None, "context": "auto", "mode": "standard",
    }  # fmt: skip

    effort: Text | None = None


def _included(given: Any) -> list[str]:
    if not isinstance(given, list):
        raise ValueError(f"expected a list of texts, found {shown(given)}")
    for one in given:
        if one not in _INCLUDED:
            raise ValueError(f"{shown(one)} isn't served here; expected some of {', '.join(_INCLUDED)}")
    return given


def _choice(given: Any) -> Any:
    """A ``tool_choice`` as chats have it."""
    if isinstance(given, str) and given in _CHOICES:
        return given
    if isinstance(given, dict) and given.get("type") == "function" and given.keys() == {"type", "name"}:
        name = given["name"]
        if isinstance(name, str) and name:
            return {"type": "function", "function": {"name": name}}
    expected = '"none", "auto", "required", or {"type": "function", "name": ...}'
    raise ValueError(f"expected {expected}, found {shown(given)}")


class ResponseBody(Choosing):
    """``POST /v1/responses``: a chat that begins with ``instructions``, and goes on with ``input``."""

    passed_over: ClassVar[frozenset[str]] = frozenset((
        "user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options", "max_tool_calls",
    ))  # fmt: skip
    asks_for_nothing: ClassVar[Mapping[str, Any]] = {
        "background": False, "previous_response_id": None, "conversation": None, "store": False, "prompt": None,
        "truncation": "disabled", "context_management": None, "moderation": None,
        "stream_options": {"include_obfuscation": False},
    }  # fmt: skip

    input: Annotated[list[dict[str, Any]], PlainValidator(read_input, json_schema_input_type=str | list[dict])]
    instructions: str | None = None
    tools: Annotated[list[FunctionTool], Field(fail_fast=True)] | None = None
    tool_choice: Annotated[Any, PlainValidator(_choice)] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: Annotated[list[str], PlainValidator(_included, json_schema_input_type=list[str])] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=MOST_FIELDS)] | None = None
    _chat: ChatBody = PrivateAttr()

    @model_validator(mode="after")
    def _as_a_chat(self) -> ResponseBody:
        biases = self.logit_bias or {}
        asked: dict[str, Any] = {name: getattr(self, name) for name in _AS_IN_CHATS}
        asked |= {
            "logit_bias": {str(token): bias for token, bias in biases.items()},
            "messages": ([{"role": "system", "content": self.instructions}] if self.instructions else []) + self.input,
            "tools": None if self.tools is None else [tool.of_chat() for tool in self.tools],
            "tool_choice": self.tool_choice,
            "response_format": self.text and self.text.format and self.text.format.of_chat(),
            "reasoning_effort": self.reasoning and self.reasoning.effort,
            "max_completion_tokens": self.max_output_tokens,
            "logprobs": self.tells_probabilities,
            "top_logprobs": self.top_logprobs,
        }
        try:
            self._chat = ChatBody.model_validate({name: value for name, value in asked.items() if value is not None})
        except ValidationError as error:
            told = "; ".join(str(found["msg"]).removeprefix("Value error, ") for found in error.errors())
            raise ValueError(told) from error
        return self

    @property
    def chat(self) -> ChatBody:
        """The chat that it is."""
        return self._chat

    @property
    def tells_probabilities(self) -> bool:
        """Is something told of each token?"""
        return bool(self.top_logprobs) or _PROBABILITIES in (self.include or ())
