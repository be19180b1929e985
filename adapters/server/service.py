"""A backbone as a service holds it: its engine, its batches, and the models that callers may name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request

from lorary.adapters.arguments import whole_number
from lorary.adapters.backbone import Backbone
from lorary.adapters.engine import Engine
from lorary.adapters.predict.generation import GENERATED
from lorary.adapters.server.batching import Batcher
from lorary.adapters.server.calls import response_template
from lorary.adapters.server.engines import Engines
from lorary.adapters.server.metrics import Metrics
from lorary.adapters.server.models import Models, Served
from lorary.adapters.server.problems import CLOSED, CallerGoneError, OverloadedError
from lorary.hub.errors import EngineStoppedError, UnknownReferenceError, UsageError

Answer = TypeVar("Answer")
_LOOKERS = 4  # threads that ask the catalogue
_LOOKS = 3  # at a catalogue that changes while a version is loaded


@dataclass(frozen=True)
class ServiceSettings:
    """How the service treats its callers.

    Args:
        api_key: what callers have to send as a bearer token; None: nothing.
        hosts: the names under which it may be called; None: any. Without a key, a page that a browser of the same
            machine shows could otherwise reach a service that is there for this machine alone, under a name of its own.
        batch_rows: the most rows of a pass of ``/v1/predict`` and ``/v1/embeddings``.
        max_waiting: how many texts may wait to be written, and how many callers' rows for a pass; who comes beyond is
            told to come again, with all the texts of the request.
        max_bytes: the most bytes of a request.
        drain_seconds: how long running requests may go on once the service is told to stop.
        engine: the settings of :class:`~lorary.adapters.engine.EngineSettings` by name.

    Raises:
        UsageError: a number that is too small, or an empty key.
    """

    api_key: str | None = None
    hosts: tuple[str, ...] | None = None
    batch_rows: int = 32
    max_waiting: int = 256
    max_bytes: int = 4 * 2**20
    drain_seconds: int = 30
    engine: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("batch_rows", "max_waiting", "max_bytes", "drain_seconds"):
            whole_number(name, getattr(self, name))
        if self.api_key is not None and not self.api_key.strip():
            raise UsageError("api_key: expected a secret, found an empty text; None asks for none")


class Service:
    """What answers the requests of :func:`~lorary.adapters.server.create_app`.

    Args:
        backbone: what it serves, and whose registry references are looked up in.
        references: the models to offer, all of the registry that fit unless given (:class:`Models`).
        settings: how callers are treated.

    Raises:
        UsageError: an engine's setting that can't be one.
        LoraryError: one of the references can't be loaded.
    """

    def __init__(
        self,
        backbone: Backbone,
        references: Sequence[str] = (),
        settings: ServiceSettings | None = None,
    ) -> None:
        self.backbone = backbone
        self.settings = settings or ServiceSettings()
        self.models = Models(backbone, references)
        self._lookers = ThreadPoolExecutor(_LOOKERS, thread_name_prefix="lorary-looks")
        # The engine keeps to it; looking at how many wait before anything is read only spares work.
        engine = {"max_waiting": self.settings.max_waiting} | (self.settings.engine or {})
        self._engines = Engines(backbone, engine, generates=self.models.generates)
        self._scoring = Batcher(backbone, rows=self.settings.batch_rows)
        self._generating = Batcher(backbone, rows=self.settings.batch_rows)  # takes long, and keeps no score waiting
        self.metrics = Metrics(backbone, lambda: self.engine)
        self.response_template = response_template(backbone.tokenizer)

    async def find(self, model: str) -> Served:
        """What a request's ``model`` stands for now, loaded; no thread is kept waiting for a load.

        Raises:
            LoraryError: as :meth:`Models.look`, or it can't be loaded; all that :meth:`Backbone.load` raises.
        """
        if (known := self.models.known(model)) is not None:
            return known
        for _ in range(_LOOKS):
            served, load = await self.look_up(self.models.look, model)
            if load is None:
                return served
            await asyncio.shield(asyncio.wrap_future(load))  # it is others' too
        raise UnknownReferenceError(f"{model} was replaced again and again while it was loaded; ask anew")

    async def look_up(self, call: Callable[..., Answer], *given: Any) -> Answer:
        """Ask the catalogue, in threads for that alone: who holds it keeps nobody waiting who doesn't ask it."""
        try:
            asked = asyncio.get_running_loop().run_in_executor(self._lookers, call, *given)
        except RuntimeError as error:
            raise EngineStoppedError(CLOSED) from error
        return await asked

    @property
    def engine(self) -> Engine | None:
        """What writes texts; after it has failed another one (:meth:`demand_engine`). None: this backbone has none."""
        return self._engines.engine

    @property
    def why_no_engine(self) -> str:
        """Why it has none, if so."""
        return self._engines.why_none

    async def demand_engine(self) -> Engine:
        """The engine, opened anew where it has failed.

        Raises:
            EngineUnsupportedError: this backbone has none.
            EngineStoppedError: it was closed, or can't be opened anew.
            OverloadedError: too many wait for it.
        """
        engine = await self._engines.working()
        self._demand_room(engine.stats().waiting)
        return engine

    async def predict(self, rows: Sequence[Any], served: Sequence[Served], params: dict[str, Any]) -> list[Any]:
        """A prediction for each row, which has its own adapter; raises what :meth:`Backbone.predict` does.

        Raises:
            OverloadedError: too many wait already.
        """
        generating = any(one.task in GENERATED and one.name is not None for one in served)
        batcher = self._generating if generating else self._scoring
        self._demand_room(batcher.waiting)  # nothing is awaited from here until these rows wait, too
        names, tasks = [one.name for one in served], [one.task for one in served]
        return await batcher.predict(rows, names, tasks, params)

    async def stopped(self) -> str | None:
        """Why texts aren't written any more, if so; an engine that has failed is opened anew to find out."""
        if self.engine is not None:
            try:
                await self._engines.working()
            except EngineStoppedError as error:
                return str(error)
        return None

    def close(self) -> None:
        """Stop the engine and the batches; who still waits gets EngineStoppedError."""
        self._engines.close()
        self.models.close()
        self._lookers.shutdown(wait=False, cancel_futures=True)
        self._scoring.close()
        self._generating.close()

    def _demand_room(self, waiting: int) -> None:
        if waiting >= self.settings.max_waiting:
            raise OverloadedError(f"{waiting} requests wait already; come again in a moment")


async def while_there(request: Request, answer: Awaitable[Answer]) -> Answer:
    """Wait for an answer for as long as its caller does.

    Raises:
        CallerGoneError: it has gone; what was to make the answer is cancelled.
    """
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise CallerGoneError("the caller has gone")
        return work.result()
    finally:
        gone.cancel()
        work.cancel()
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # asyncio logs what nobody looks at


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
