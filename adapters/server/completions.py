"""``/v1/completions`` and ``/v1/chat/completions``: texts from the engine, whole or as they come."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lorary.adapters.engine import Completion, Engine
from lorary.adapters.engine import Request as Generation
from lorary.adapters.server.bodies import MOST_ROWS, ChatBody, CompletionBody
from lorary.adapters.server.logprobs import ToldToken, of_chat, of_text
from lorary.adapters.server.models import Served
from lorary.adapters.server.problems import Refusal, problem
from lorary.adapters.server.service import Service, while_there
from lorary.adapters.server.writing import Writing


@dataclass(frozen=True)
class Part:
    """A piece of a text, or all of it, with what its caller wants to be told of its tokens."""

    text: str
    tokens: Sequence[ToldToken] | None = None


@dataclass(frozen=True)
class Form:
    """How one of the two paths names what it answers."""

    prefix: str
    whole: str
    part: str
    chat: bool

    def choice(self, index: int, part: Part, reason: str | None) -> dict[str, Any]:
        """A whole text."""
        content = {"message": {"role": "assistant", "content": part.text}} if self.chat else {"text": part.text}
        return {"index": index, **content, "logprobs": self._logprobs(part), "finish_reason": reason}

    def delta(self, index: int, part: Part, reason: str | None, *, first: bool) -> dict[str, Any]:
        """A piece of a text."""
        turn = ({"role": "assistant"} if first else {}) | ({"content": part.text} if part.text or first else {})
        content = {"delta": turn} if self.chat else {"text": part.text}
        return {"index": index, **content, "logprobs": self._logprobs(part), "finish_reason": reason}

    def _logprobs(self, part: Part) -> dict[str, Any] | None:
        if part.tokens is None:
            return None
        return of_chat(part.tokens) if self.chat else of_text(part.tokens)


class Streamed(StreamingResponse):
    """Server-sent events; however it ends, also before its first one, what makes the texts is given up."""

    def __init__(self, chunks: AsyncGenerator[str, None], generations: Sequence[Generation]) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._chunks = chunks
        self._generations = generations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events for as long as there is somebody to have them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._chunks.aclose()
            _give_up(self._generations)


TEXT = Form("cmpl-", "text_completion", "text_completion", chat=False)
CHAT = Form("chatcmpl-", "chat.completion", "chat.completion.chunk", chat=True)


def routes(service: Service) -> APIRouter:
    """The two paths."""
    router = APIRouter(prefix="/v1")

    @router.post("/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        """Go on from one prompt or several."""
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        return await _answer(service, request, body, TEXT, prompts, {})

    @router.post("/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        try:
            prompt = body.conversation()
        except ValueError as error:
            raise Refusal(400, str(error), "invalid_request") from error
        told = {"tools": body.tools, "chat_template_kwargs": body.chat_template_kwargs}
        return await _answer(service, request, body, CHAT, [prompt], told)

    return router


async def _answer(
    service: Service,
    request: Request,
    body: CompletionBody | ChatBody,
    form: Form,
    prompts: Sequence[Any],
    told: dict[str, Any],
) -> Response:
    if (texts := len(prompts) * (body.n or 1)) > MOST_ROWS:
        raise Refusal(400, f"{texts} texts at once; expected at most {MOST_ROWS}", "invalid_request")
    engine = service.demand_engine()
    served = await service.find(body.model)
    generations = await asyncio.to_thread(_submit, engine, served, body, prompts, told)
    frame = {"id": f"{form.prefix}{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
    if body.stream:
        chunks = _stream(service, generations, body, form, frame)
        return Streamed(chunks, generations)
    try:
        written = await while_there(request, asyncio.gather(*(_write(Writing(one, body.stops)) for one in generations)))
    finally:
        _give_up(generations)
    completions = [completion for _, completion in written]
    for completion in completions:
        service.metrics.completed(body.model, completion)
    choices = [form.choice(index, part, completion.finish_reason) for index, (part, completion) in enumerate(written)]
    frame |= {"object": form.whole, "choices": choices, "usage": _usage(completions, body.n or 1)}
    return JSONResponse(frame)


def _submit(
    engine: Engine, served: Served, body: CompletionBody | ChatBody, prompts: Sequence[Any], told: dict[str, Any]
) -> list[Generation]:
    """A request to the engine for each text that is asked for; none where one of them is refused."""
    settings, generations = body.settings(), list[Generation]()
    try:
        for prompt in prompts:
            for number in range(body.n or 1):
                seed = None if body.seed is None or not settings["do_sample"] else body.seed + number
                generations.append(
                    engine.submit(
                        prompt, served.name, seed=seed, open_ended=True, logprobs=body.likeliest, **told, **settings
                    )
                )
    except BaseException:
        _give_up(generations)
        raise
    return generations


async def _stream(
    service: Service,
    generations: Sequence[Generation],
    body: CompletionBody | ChatBody,
    form: Form,
    frame: dict[str, Any],
) -> AsyncGenerator[str, None]:
    """Server-sent events, a piece of one of the texts each; a caller that goes away ends what makes them."""
    frame = frame | {"object": form.part}
    parts: asyncio.Queue[tuple[int, Part, Completion | BaseException | None]] = asyncio.Queue()
    readers = [
        asyncio.ensure_future(_read(index, Writing(generation, body.stops), parts))
        for index, generation in enumerate(generations)
    ]
    completions: dict[int, Completion] = {}
    begun: set[int] = set()
    try:
        while len(completions) < len(generations):
            index, part, end = await parts.get()
            if isinstance(end, BaseException):
                yield _event(problem(end)[1])
                return
            if end is not None:
                completions[index] = end
                service.metrics.completed(body.model, end)
            reason = end.finish_reason if end is not None else None
            yield _event(frame | {"choices": [form.delta(index, part, reason, first=index not in begun)]})
            begun.add(index)
        if body.stream_options and body.stream_options.include_usage:
            used = _usage([completions[index] for index in sorted(completions)], body.n or 1)
            yield _event(frame | {"choices": [], "usage": used})
        yield "data: [DONE]\n\n"
    finally:
        for reader in readers:
            reader.cancel()


async def _read(index: int, writing: Writing, parts: asyncio.Queue[Any]) -> None:
    """Put a text's pieces into the queue, the last one with what the request came to."""
    try:
        async for piece in writing.pieces():
            await parts.put((index, Part(piece, writing.told()), None))
        await parts.put((index, Part("", writing.told()), await writing.completion()))
    except Exception as error:
        await parts.put((index, Part(""), error))


async def _write(writing: Writing) -> tuple[Part, Completion]:
    """A whole text, and what the request came to."""
    text = "".join([piece async for piece in writing.pieces()])
    return Part(text, writing.told()), await writing.completion()


def _give_up(generations: Sequence[Generation]) -> None:
    for generation in generations:
        with suppress(Exception):
            generation.cancel()


def _usage(completions: Sequence[Completion], each: int) -> dict[str, int]:
    """Tokens of a call; a prompt that several texts go on from counts once."""
    asked = sum(completion.prompt_tokens for completion in completions[::each])
    made = sum(len(completion.tokens) for completion in completions)
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
