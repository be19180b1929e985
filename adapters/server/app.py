"""The service's paths, as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from lorary.adapters.server import completions, predictions, responses
from lorary.adapters.server.guard import Guard
from lorary.adapters.server.metrics import CONTENT_TYPE
from lorary.adapters.server.problems import answer_invalid, answer_memory, answer_problem
from lorary.adapters.server.service import Service
from lorary.hub.errors import LoraryError


def create_app(service: Service) -> FastAPI:
    """An ASGI application around a service; it closes the service when it ends.

    ========================================= =================================================================
    ``POST /v1/chat/completions``             OpenAI's: conversations, whole or as a stream
    ``POST /v1/completions``                  OpenAI's: prompts, whole or as a stream
    ``POST /v1/responses``                    OpenAI's newer one: conversations, whole or as a stream of events
    ``POST /v1/embeddings``                   OpenAI's: vectors of adapters for feature extraction
    ``POST /v1/predict``                      any task, one adapter for all rows or one for each
    ``GET /v1/models``, ``/v1/models/{id}``   what ``model`` may be
    ``GET /health``, ``/metrics``, ``/``      is it there; Prometheus's figures; a page to try it
    ========================================= =================================================================
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    # Its pages for reading the paths' descriptions load code from elsewhere; the descriptions are at /openapi.json.
    app = FastAPI(title="lorary", lifespan=lifespan, docs_url=None, redoc_url=None)
    settings = service.settings
    app.add_middleware(Guard, api_key=settings.api_key, max_bytes=settings.max_bytes, hosts=settings.hosts)
    app.add_exception_handler(HTTPException, answer_problem)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(RuntimeError, answer_memory)
    for kind in (LoraryError, MemoryError, Exception):
        app.add_exception_handler(kind, answer_problem)  # what only the last one takes is logged with its traceback
    app.include_router(completions.routes(service))
    app.include_router(responses.routes(service))
    app.include_router(predictions.routes(service))
    page = files("lorary.adapters.server").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """What ``model`` may be."""
        return {"object": "list", "data": await service.look_up(service.models.listing)}

    @app.get("/v1/models/{model:path}")
    async def show_model(model: str) -> dict[str, Any]:
        """One of them."""
        return await service.look_up(service.models.show, model)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Is there somebody at work?"""
        stopped = await service.stopped()
        return JSONResponse({"status": stopped or "ok"}, 503 if stopped else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(await asyncio.to_thread(service.metrics.text), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        """A page to try the models on."""
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})

    return app


_POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"
)
