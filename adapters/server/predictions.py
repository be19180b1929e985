"""``/v1/predict`` and ``/v1/embeddings``: rows of any task, those of all callers together in one pass."""

from __future__ import annotations

import asyncio
import base64
import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lorary.adapters.arguments import is_number, is_whole, shown
from lorary.adapters.predict.generation import GENERATED
from lorary.adapters.predict.plain import plain
from lorary.adapters.predict.table import PREDICTORS
from lorary.adapters.server.bodies import EmbeddingBody, PredictBody
from lorary.adapters.server.models import Served
from lorary.adapters.server.problems import Refusal
from lorary.adapters.server.sampling import COLDEST
from lorary.adapters.server.service import Service, while_there

_MOST: Mapping[str, int | None] = {
    "max_new_tokens": 4096, "min_new_tokens": 4096, "num_beams": 16, "num_return_sequences": 16, "top_k": None,
    "no_repeat_ngram_size": 64, "do_sample": None, "temperature": None, "top_p": None, "min_p": None,
    "repetition_penalty": None, "length_penalty": None, "early_stopping": None,
}  # fmt: skip
"""What of ``generate`` a caller may choose where tasks generate, and how much of it."""

_BETWEEN = {"temperature": (COLDEST, 100), "length_penalty": (-100, 100)}  # beyond, scores are no numbers any more


def routes(service: Service) -> APIRouter:
    """The two paths."""
    router = APIRouter(prefix="/v1")
    unpooled: set[str | None] = {None}  # digests of what gives a vector for each token; None is the bare backbone's

    @router.post("/predict")
    async def predict(body: PredictBody, request: Request) -> Response:
        """Predict with one adapter for all rows or one for each, in the shapes of transformers' pipelines."""
        rows = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        models: list[str | None] = [*body.model] if isinstance(body.model, list) else [body.model] * len(rows)
        if len(models) != len(rows):
            raise Refusal(
                400,
                f"{len(models)} models for {len(rows)} inputs; expected one for each, or one for all",
                "invalid_request",
            )
        found = await _find_each(service, models)
        served = [found[model] for model in models]
        demand_parameters(body.parameters, [one.task for one in served])
        answers = await while_there(request, service.predict(rows, served, body.parameters))
        service.metrics.predicted(models)
        about = {"model": body.model, "digests": [one.digest for one in served]}
        return await _written(about, "predictions", answers)

    @router.post("/embeddings")
    async def embed(body: EmbeddingBody, request: Request) -> Response:
        """Embed texts, one vector for each."""
        texts = [body.input] if isinstance(body.input, str) else body.input
        served = await service.find(body.model)
        if served.task != "feature-extraction":
            raise Refusal(
                400,
                f"{body.model} is for {served.task}; an embedding needs an adapter for feature-extraction",
                "model_not_served",
            )

        async def embedded() -> list[Any]:
            # Nothing says how such tokens become one vector: the mean is what sentence-transformers takes.
            params = {"count_tokens": True} | ({"pooling": "mean"} if served.digest in unpooled else {})
            return await while_there(request, service.predict(texts, [served] * len(texts), params))

        rows = await embedded()
        if hasattr(rows[0]["features"][0], "__len__"):
            unpooled.add(served.digest)  # known from now on
            rows = await embedded()
        service.metrics.predicted([body.model] * len(texts))

        def item(index: int, row: dict[str, Any]) -> dict[str, Any]:
            return {"object": "embedding", "index": index, "embedding": _encoded(row["features"], body.encoding_format)}

        tokens = sum(row["tokens"] for row in rows)
        about = {"object": "list", "model": body.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
        return await _written(about, "data", rows, item)

    return router


def demand_parameters(params: Mapping[str, Any], tasks: Iterable[str]) -> None:
    """Refuse parameters that no caller from elsewhere may choose, and those that no task of the request takes.

    Raises:
        Refusal: there is one.
    """
    generates = any(task in GENERATED for task in tasks)
    known = frozenset().union(*(PREDICTORS[task].parameters for task in tasks if task in PREDICTORS))
    for name, value in params.items():
        if name not in known and not (generates and name in _MOST):
            told = ", ".join(sorted(known | (set(_MOST) if generates else set()))) or "none"
            raise Refusal(400, f"parameters.{name[:50]}: not for this request; known: {told}", "invalid_request")
        most = _MOST.get(name) if generates else None
        if most is not None and not (is_whole(value) and 0 <= value <= most):
            raise Refusal(
                400, f"parameters.{name}: expected a whole number of at most {most}, found {shown(value)}",
                "invalid_request",
            )  # fmt: skip
        least, top = _BETWEEN.get(name, (0, 0)) if generates else (0, 0)
        if top and is_number(value) and value != 0 and not least <= value <= top:
            raise Refusal(
                400, f"parameters.{name}: expected a number from {least} to {top}, found {shown(value)}",
                "invalid_request",
            )  # fmt: skip


async def _find_each(service: Service, models: list[str | None]) -> dict[str | None, Served]:
    distinct = list(dict.fromkeys(models))
    found = await asyncio.gather(*(service.find(service.models.base if one is None else one) for one in distinct))
    return dict(zip(distinct, found, strict=True))


async def _written(
    about: Mapping[str, Any],
    name: str,
    rows: Sequence[Any],
    item: Callable[[int, Any], Any] = lambda _, row: row,
) -> Response:
    """What there is to tell and a list of rows as JSON, written in a thread: it may be millions of numbers.

    Row by row, since no other thread runs while json writes one value.
    """

    def write() -> bytes:
        parts = (json.dumps(item(place, plain(row)), ensure_ascii=False) for place, row in enumerate(rows))
        return f'{json.dumps(about)[:-1]}, "{name}": [{", ".join(parts)}]}}'.encode()

    return Response(await asyncio.to_thread(write), media_type="application/json")


def _encoded(vector: list[float], encoding: str | None) -> list[float] | str:
    """A vector as numbers, or as the little-endian float32 in base64 that OpenAI's client asks for by itself."""
    return base64.b64encode(array("f", vector).tobytes()).decode() if encoding == "base64" else vector
