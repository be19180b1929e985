"""How new tokens are chosen, as callers ask for it, and what all bodies of requests have in common.

A field that isn't known is an error, and so is a known one of OpenAI's that isn't served, unless it asks for nothing:
a setting that does nothing without a word would be worse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from lorary.adapters.arguments import shown
from lorary.adapters.engine.penalties import MOST_PENALTY
from lorary.adapters.server.response_format import ResponseFormat

Text = Annotated[str, Field(min_length=1)]
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
MOST_FIELDS = 100  # of a body, or a template's variables; millions of unknown ones would take minutes to be told
_MOST_BIASES = 10_000  # of a request, each of whose texts goes through them
_TOKEN = re.compile("0|-?[1-9][0-9]{0,99}")  # one spelling for each, so that no two names mean the same

Penalty = Annotated[float, Field(ge=-MOST_PENALTY, le=MOST_PENALTY)]


class Body(BaseModel):
    """A request's body, or a part of one; fields that ask for nothing are taken out before it is read.

    ``passed_over`` are fields that change no answer, ``asks_for_nothing`` those that aren't served, with the value
    (besides null) with which they may be sent.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    passed_over: ClassVar[frozenset[str]] = _ABOUT_THE_CALLER
    asks_for_nothing: ClassVar[Mapping[str, Any]] = _ASKS_FOR_NOTHING

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        if len(body) > MOST_FIELDS:
            raise ValueError(f"{len(body)} fields; expected at most {MOST_FIELDS}")
        kept = {}
        for name, value in body.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name in cls.asks_for_nothing:
                neutral = cls.asks_for_nothing[name]
                if not _asks_for_nothing(value, neutral):
                    instead = "" if neutral is None else f", or pass {neutral!r}"
                    raise ValueError(f"{name} isn't served here; leave it out{instead}")
            elif name not in cls.passed_over:
                kept[name] = value
        return kept


class StreamOptions(BaseModel):
    """What a stream says besides the text."""

    model_config = ConfigDict(extra="ignore", strict=True)

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


class Choosing(Body):
    """How new tokens are chosen, as all paths for texts take it, and with which model.

    With any of ``temperature`` (above 0), ``top_p``, ``top_k``, ``min_p`` and ``seed`` they are sampled; with none of
    them they are chosen as the adapter or the base says, which is mostly greedily.
    """

    model: Text
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stream: bool | None = None


class Sampling(Choosing):
    """The same, and where texts end, how many there are, and what they have to be."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16, fail_fast=True)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
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


def _asks_for_nothing(value: Any, neutral: Any) -> bool:
    kinds = isinstance(value, bool) == isinstance(neutral, bool)  # 0.0 is 0, but neither is False
    return value is None or (kinds and value == neutral)
