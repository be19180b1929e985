"""What goes wrong, as callers are told: OpenAI's shape of an error, and a status for each of lorary's errors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import NoneType
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lorary.adapters.arguments import shown
from lorary.adapters.base.memory import out_of_memory
from lorary.adapters.server.bodies import EXPECTED
from lorary.hub.errors import (
    BaseMismatchError,
    EngineFailedError,
    EngineFullError,
    EngineStoppedError,
    EngineUnsupportedError,
    InvalidReferenceError,
    LoraryError,
    RequestCancelledError,
    RequestFailedError,
    SlotsFullError,
    UnknownReferenceError,
    UnsupportedAdapterError,
    UsageError,
)

_LOGGER = logging.getLogger(__name__)

# The first that fits; what isn't here is the service's own fault, of which its log says more than its callers may know.
_STATUS: Sequence[tuple[type[BaseException], int, str]] = (
    (UnknownReferenceError, 404, "model_not_found"),
    (InvalidReferenceError, 404, "model_not_found"),
    (BaseMismatchError, 400, "model_not_served"),
    (UnsupportedAdapterError, 400, "model_not_served"),
    (EngineUnsupportedError, 400, "model_not_served"),
    (UsageError, 400, "invalid_request"),
    (EngineFullError, 429, "overloaded"),
    (SlotsFullError, 503, "overloaded"),
    (EngineFailedError, 503, "engine_failed"),
    (EngineStoppedError, 503, "stopping"),
    (RequestCancelledError, 503, "stopping"),
    (RequestFailedError, 500, "request_failed"),
)
_SAY_ALL = ("value_error", "extra_forbidden", "json_invalid")  # mistakes whose message needs no word of what was sent
_RETRY_SECONDS = "1"
CLOSED = "the service was stopped; ask again where it runs"
NOT_ANEW = "the engine has failed, and can't be opened anew; the service's log says more"
_ANEW = "the engine has failed, and is opened anew: ask again"
_MEMORY = "out of memory; send fewer or shorter texts"


class OverloadedError(LoraryError):
    """More requests wait than the service takes on."""


class CallerGoneError(LoraryError):
    """Nobody is there any more to have the answer."""


class Refusal(HTTPException):
    """A request that is refused for what it says or who sends it, with OpenAI's ``code``."""

    def __init__(self, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.code = code


def problem(error: BaseException) -> tuple[int, dict[str, Any]]:
    """The status of an error, and the body that tells of it; one that callers can do nothing about is logged."""
    if isinstance(error, HTTPException):
        return error.status_code, _body(str(error.detail), error.status_code, getattr(error, "code", "invalid_request"))
    if isinstance(error, OverloadedError):
        return 429, _body(str(error), 429, "overloaded")
    if isinstance(error, CallerGoneError):
        return 499, _body(str(error), 499, "gone")  # nginx's number for it; it stands in a log alone
    cause = error.__cause__ if isinstance(error, (EngineFailedError, RequestFailedError)) else None
    if out_of_memory(cause or error):
        _LOGGER.warning("out of memory: %s", cause or error)
        return 503, _body(_MEMORY, 503, "out_of_memory")
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            if status >= 500:
                _LOGGER.warning("%s: %s", type(error).__name__, error)
            # What went wrong in an engine is nobody's business but the log's.
            return status, _body(_ANEW if kind is EngineFailedError else str(error), status, code)
    _LOGGER.error("a request failed: %s: %s", type(error).__name__, error)
    return 500, _body(f"{type(error).__name__}; the service's log says more", 500, "internal_error")


async def answer_problem(_request: Request | None, error: Exception) -> JSONResponse:
    """The response to a request that went wrong."""
    status, body = problem(error)
    headers = dict(getattr(error, "headers", None) or {})
    if status in (429, 503):
        headers["Retry-After"] = _RETRY_SECONDS
    return JSONResponse(body, status, headers)


async def answer_memory(request: Request, error: Exception) -> JSONResponse:
    """The response where torch says that memory has run out; any other error of its kind is none of the caller's.

    Raises:
        RuntimeError: it is another one.
    """
    if not out_of_memory(error):
        raise error
    return await answer_problem(request, error)


async def answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """The response to a body that isn't what its path takes: every mistake, with its place."""
    assert isinstance(error, RequestValidationError)
    told = "; ".join(list(dict.fromkeys(map(_mistake, error.errors())))[:8])
    kind = request.headers.get("content-type")
    if isinstance(error.body, bytes):  # what isn't said to be JSON isn't read: curl says that it is a form
        told = f"expected a body of 'Content-Type: application/json', found {repr(kind[:100]) if kind else 'none'}"
    return JSONResponse(_body(told, 400, "invalid_request"), 400)


def _mistake(found: Any) -> str:
    path = [part for part in found["loc"] if part != "body"]
    kinds = next((place for place, part in enumerate(path) if part in EXPECTED), None)
    if kinds is not None and len(path) > kinds + 1:
        path, found = path[: kinds + 1], {**found, "msg": f"expected {EXPECTED[path[kinds]]}"}
    place = ".".join(map(str, path))
    message = str(found["msg"]).removeprefix("Value error, ")
    if kinds is None and found["type"] not in _SAY_ALL and isinstance(found["input"], (str, int, float, NoneType)):
        message += f", found {shown(found['input'])}"
    if found["type"] == "extra_forbidden":
        message = "no such field"
    if found["type"] == "json_invalid":
        return f"the body isn't JSON: {found.get('ctx', {}).get('error', message)}"
    return f"{place}: {message}" if place else message


def _body(message: str, status: int, code: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    message = message.encode(errors="backslashreplace").decode()  # it may quote what no JSON can be made of
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
