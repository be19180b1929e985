"""The path: a chat is begun, and told as a response, whole or by its events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lorary.adapters.server.completions import Streamed, begin, give_up
from lorary.adapters.server.problems import Refusal, problem
from lorary.adapters.server.responses.answer import Answer, Event
from lorary.adapters.server.responses.body import ResponseBody
from lorary.adapters.server.service import Service, while_there
from lorary.adapters.server.writing import Writing
from lorary.hub.errors import first_line

_MORE_LEVELS = 50  # than what a response repeats has by itself: it is written within others, and from deeper in a stack


def routes(service: Service) -> APIRouter:
    """``/v1/responses``, and what belongs to it elsewhere."""
    router = APIRouter(prefix="/v1")

    @router.post("/responses")
    async def respond(body: ResponseBody, request: Request) -> Response:
        """Answer a conversation in OpenAI's newer form; nothing of it is kept."""
        chat, answer = body.chat, Answer(body)
        _demand_writable(answer.response())
        (writing,) = writings = await begin(service, chat, [chat.conversation()], chat.told)
        if body.stream:
            return Streamed(_stream(service, answer, writing, body.model), writings)
        try:
            await while_there(request, _write(service, answer, writing, body.model))
        finally:
            give_up(writings)
        return JSONResponse(answer.response())

    @router.api_route("/responses/{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
    async def refuse(rest: str) -> None:
        """What asks for a response that was kept."""
        told = (
            f"/v1/responses/{rest[:100]} isn't served here: no response is kept; send all of a conversation each time"
        )
        raise Refusal(404, told, "not_found")

    return router


def _demand_writable(response: Mapping[str, Any]) -> None:
    """Refuse at once what can be read, and couldn't be written when a response repeats it.

    Raises:
        Refusal: there is such a thing.
    """
    nested: Any = response
    for _ in range(_MORE_LEVELS):
        nested = [nested]
    try:
        json.dumps(nested, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        told = f"instructions, tools, or text.format: expected what can be written as JSON again ({first_line(error)})"
        raise Refusal(400, told, "invalid_request") from error


async def _write(service: Service, answer: Answer, writing: Writing, model: str) -> None:
    async for _ in _events(service, answer, writing, model):
        pass


async def _stream(service: Service, answer: Answer, writing: Writing, model: str) -> AsyncGenerator[str, None]:
    """Server-sent events; one that tells of an error is the last."""
    try:
        async for event in _events(service, answer, writing, model):
            yield _sent(event)
    except Exception as error:
        for event in answer.fail(problem(error)[1]["error"]["message"]):
            yield _sent(event)


async def _events(service: Service, answer: Answer, writing: Writing, model: str) -> AsyncGenerator[Event, None]:
    """All that there is to tell, from the beginning; raises what the generation does."""
    for event in answer.begin():
        yield event
    async for part, end in writing.parts():
        for event in answer.add(part):
            yield event
        if end is not None:
            service.metrics.completed(model, end)
            for event in answer.end(end, writing.thinking):
                yield event


def _sent(event: dict[str, Any]) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"
