"""``/v1/completions`` and ``/v1/chat/completions``: texts from the engine, whole or as they come."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lorary.adapters.engine import Completion, Engine
from lorary.adapters.engine import Request as Generation
from lorary.adapters.server.bodies import MOST_ROWS, ChatBody, CompletionBody
from lorary.adapters.server.calls import AnswerReader, Reader, Said
from lorary.adapters.server.forms import CHAT, TEXT, Form, reason_of, usage
from lorary.adapters.server.models import Served
from lorary.adapters.server.problems import Refusal, problem
from lorary.adapters.server.service import Service, while_there
from lorary.adapters.server.tool_choice import WantedCalls
from lorary.adapters.server.wanted import WantedReader
from lorary.adapters.server.writing import Part, Writing


class Streamed(StreamingResponse):
    """Server-sent events; however it ends, also before its first one, what makes the texts is given up."""

    def __init__(self, chunks: AsyncGenerator[str, None], writings: Sequence[Writing]) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._chunks = chunks
        self._writings = writings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events for as long as there is somebody to have them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._chunks.aclose()
            give_up(self._writings)


def routes(service: Service) -> APIRouter:
    """The two paths."""
    router = APIRouter(prefix="/v1")

    @router.post("/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        """Go on from one prompt or several."""
        return await _answer(service, request, body, TEXT, body.prompt, {})

    @router.post("/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        try:
            prompt = body.conversation()
        except ValueError as error:
            raise Refusal(400, str(error), "invalid_request") from error
        return await _answer(service, request, body, CHAT, [prompt], body.told)

    return router


async def _answer(
    service: Service,
    request: Request,
    body: CompletionBody | ChatBody,
    form: Form,
    prompts: Sequence[Any],
    told: dict[str, Any],
) -> Response:
    writings = await begin(service, body, prompts, told)
    frame = {"id": f"{form.prefix}{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
    if body.stream:
        return Streamed(_stream(service, writings, body, form, frame), writings)
    try:
        written = await while_there(request, asyncio.gather(*(writing.whole() for writing in writings)))
    finally:
        give_up(writings)
    completions = [completion for _, completion in written]
    for completion in completions:
        service.metrics.completed(body.model, completion)
    choices = [form.choice(index, part, completion) for index, (part, completion) in enumerate(written)]
    frame |= {"object": form.whole, "choices": choices, "usage": usage(completions, body.n or 1)}
    return JSONResponse(frame)


async def begin(
    service: Service, body: CompletionBody | ChatBody, prompts: Sequence[Any], told: dict[str, Any]
) -> list[Writing]:
    """Texts that are being written from now on, to be read, and to be given up in the end.

    Raises:
        Refusal: they are too many.
        LoraryError: what :meth:`Service.demand_engine`, :meth:`Service.find` and :meth:`Engine.submit` raise.
    """
    engine = await service.demand_engine()
    most = min(MOST_ROWS, engine.settings.max_running + (engine.settings.max_waiting or MOST_ROWS))
    if (texts := len(prompts) * (body.n or 1)) > most:
        raise Refusal(400, f"{texts} texts at once; expected at most {most}", "invalid_request")
    served = await service.find(body.model)
    template = service.response_template if told.get("tools") else None
    return await asyncio.to_thread(_submit, engine, served, body, prompts, told, template)


def _submit(
    engine: Engine,
    served: Served,
    body: CompletionBody | ChatBody,
    prompts: Sequence[Any],
    told: dict[str, Any],
    template: dict[str, Any] | None,
) -> list[Writing]:
    """A request to the engine for each text that is asked for; none where one of them is refused."""
    settings, writings = body.settings(), list[Writing]()
    try:
        for prompt in prompts:
            for number in range(body.n or 1):
                seed = None if body.seed is None or not settings["do_sample"] else body.seed + number
                generation = engine.submit(
                    prompt, served.name, seed=seed, open_ended=True, logprobs=body.likeliest, **told, **settings
                )
                writings.append(Writing(generation, body.stops, _reader(generation, body.wanted, told, template)))
    except BaseException:
        give_up(writings)
        raise
    return writings


def _reader(
    generation: Generation, wanted: WantedCalls | None, told: dict[str, Any], template: dict[str, Any] | None
) -> Reader | None:
    """What takes calls out of an answer; None where it is all text."""
    if wanted is not None:
        return WantedReader(wanted)
    return AnswerReader(generation, template, told["tools"]) if template else None


async def _stream(
    service: Service,
    writings: Sequence[Writing],
    body: CompletionBody | ChatBody,
    form: Form,
    frame: dict[str, Any],
) -> AsyncGenerator[str, None]:
    """Server-sent events, a piece of one of the texts each; a caller that goes away ends what makes them."""
    frame = frame | {"object": form.part}
    parts: asyncio.Queue[tuple[int, Part, Completion | BaseException | None]] = asyncio.Queue()
    readers = [asyncio.ensure_future(_read(index, writing, parts)) for index, writing in enumerate(writings)]
    completions: dict[int, Completion] = {}
    calls: dict[int, int] = {}  # of each text so far, once it has begun
    called: dict[int, bool] = {}  # are they whole?
    try:
        while len(completions) < len(writings):
            index, part, end = await parts.get()
            if isinstance(end, BaseException):
                yield _event(problem(end)[1])
                return
            first, before = index not in calls, calls.get(index, 0)
            calls[index] = before + sum(call.begins for call in part.said.calls)
            if part.said.calls:
                called[index] = part.said.called
            reason = None
            if end is not None:
                completions[index] = end
                service.metrics.completed(body.model, end)
                reason = reason_of(end, called=called.get(index, False))
            yield _event(frame | {"choices": [form.delta(index, part, reason, first=first, called=before)]})
        if body.stream_options and body.stream_options.include_usage:
            used = usage([completions[index] for index in sorted(completions)], body.n or 1)
            yield _event(frame | {"choices": [], "usage": used})
        yield "data: [DONE]\n\n"
    finally:
        for reader in readers:
            reader.cancel()


async def _read(index: int, writing: Writing, parts: asyncio.Queue[Any]) -> None:
    """Put a text's parts into the queue, the last one with what the request came to."""
    try:
        async for part, end in writing.parts():
            await parts.put((index, part, end))
    except Exception as error:
        await parts.put((index, Part(Said()), error))


def give_up(writings: Sequence[Writing]) -> None:
    """Let nobody write on these."""
    for writing in writings:
        with suppress(Exception):
            writing.generation.cancel()


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
