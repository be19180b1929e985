"""The engine of a service: opened with it, and opened anew after it has failed, as it does where memory runs out."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from lorary.adapters.backbone import Backbone
from lorary.adapters.base.memory import free_memory
from lorary.adapters.engine import Engine
from lorary.adapters.server.problems import CLOSED, NOT_ANEW
from lorary.hub.errors import EngineStoppedError, EngineUnsupportedError

_LOGGER = logging.getLogger(__name__)


class Engines:
    """One engine at a time.

    Args:
        backbone: what it runs on.
        settings: those of :class:`~lorary.adapters.engine.EngineSettings` by name.
        generates: has the backbone a language-modelling head?

    Raises:
        UsageError: a setting that can't be one.
    """

    def __init__(self, backbone: Backbone, settings: dict[str, Any], *, generates: bool) -> None:
        self.engine: Engine | None = None
        self.why_none = "this base doesn't generate"
        self._backbone = backbone
        self._settings = settings
        self._closed = threading.Event()
        self._turn = asyncio.Lock()
        if generates:
            try:
                self.engine = backbone.engine(**settings)
            except EngineUnsupportedError as error:
                self.why_none = str(error)

    async def working(self) -> Engine:
        """The engine; the first who comes after it has failed opens it anew, and the others wait for that.

        Raises:
            EngineUnsupportedError: this backbone has none.
            EngineStoppedError: it was closed, or can't be opened anew.
        """
        if self.engine is None:
            raise EngineUnsupportedError(f"{self.why_none}; POST /v1/predict serves every task")
        if self.engine.stopped is not None:
            async with self._turn:
                if self.engine.stopped is not None:
                    await asyncio.to_thread(self._reopen, self.engine)
        return self.engine

    def close(self) -> None:
        """Stop it for good; who still waits for a text gets EngineStoppedError."""
        self._closed.set()
        if self.engine is not None:
            self.engine.close()

    def _reopen(self, failed: Engine) -> None:
        if self._closed.is_set():
            raise EngineStoppedError(CLOSED)
        failed.close()
        free_memory()  # its cache has to be gone before there is another one
        try:
            self.engine = self._backbone.engine(**self._settings)
        except Exception as error:
            _LOGGER.warning("the engine can't be opened anew: %s: %s", type(error).__name__, error)
            raise EngineStoppedError(NOT_ANEW) from error
        _LOGGER.warning("the engine was opened anew: it had ended (%s)", failed.stopped)
        if self._closed.is_set():
            self.engine.close()
