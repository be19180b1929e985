"""One pass for the rows of many callers: what comes in while a pass runs makes up the next one."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from lorary.adapters.backbone import Backbone
from lorary.adapters.server.problems import CLOSED
from lorary.hub.errors import EngineStoppedError


@dataclass
class _Job:
    """One caller's rows, an adapter for each; jobs of the same ``key`` may share a pass."""

    rows: Sequence[Any]
    names: Sequence[str | None]
    params: Mapping[str, Any]
    key: str
    done: Future[list[Any]] = field(default_factory=Future)


class Batcher:
    """Predicts for many callers in one thread of its own, the rows of several together, each with its own adapter.

    Nobody waits for others to come: a pass begins as soon as the one before has ended, with what is there by then.
    Who sends more rows than a pass has lets others in after each, and gets no further ones once it is gone. A row that
    can't be read fails its own caller alone.

    Args:
        backbone: what predicts.
        rows: the most rows of a pass.
    """

    def __init__(self, backbone: Backbone, *, rows: int) -> None:
        self.passes = 0
        self._backbone = backbone
        self._rows = rows
        self._jobs: deque[_Job] = deque()
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="lorary-batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many callers' rows wait for a pass."""
        return len(self._jobs)

    async def predict(
        self, rows: Sequence[Any], names: Sequence[str | None], tasks: Sequence[str], params: Mapping[str, Any]
    ) -> list[Any]:
        """Predictions, one for each row, as :meth:`Backbone.predict` gives them; a caller that is gone is left out.

        Raises:
            EngineStoppedError: the service is stopping.
            LoraryError: what :meth:`Backbone.predict` raises.
        """
        # A parameter goes to all tasks of a call that take it, and must not change a neighbour's answer.
        key = json.dumps([sorted(set(tasks)), params], sort_keys=True, default=repr) if params else ""
        # A parameter that only some of the tasks take would be an error in a part without them.
        most = len(rows) if params and len(set(tasks)) > 1 else self._rows
        answers: list[Any] = []
        for start in range(0, len(rows), most):
            end = start + most
            answers += await self._answered(_Job(rows[start:end], names[start:end], params, key))
        return answers

    async def _answered(self, job: _Job) -> list[Any]:
        with self._news:
            if self._closed:
                raise EngineStoppedError(CLOSED)
            self._jobs.append(job)
            self._news.notify()
        return await asyncio.wrap_future(job.done)

    def close(self) -> None:
        """End after the pass that runs; who still waits gets EngineStoppedError."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._take():
            self._answer([job for job in jobs if job.done.set_running_or_notify_cancel()])
        with self._news:
            left = [job for job in self._jobs if job.done.set_running_or_notify_cancel()]
            self._jobs.clear()
        for job in left:
            job.done.set_exception(EngineStoppedError(CLOSED))

    def _take(self) -> list[_Job]:
        """The jobs of the next pass: the one that has waited longest, and what fits beside it; none at the end."""
        with self._news:
            self._news.wait_for(lambda: self._jobs or self._closed)
            if self._closed:
                return []
            chosen = [self._jobs.popleft()]
            room = self._rows - len(chosen[0].rows)
            for job in tuple(self._jobs):
                if job.key == chosen[0].key and len(job.rows) <= room:
                    self._jobs.remove(job)
                    chosen.append(job)
                    room -= len(job.rows)
            return chosen

    def _answer(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        rows = [row for job in jobs for row in job.rows]
        names = [name for job in jobs for name in job.names]
        self.passes += 1
        try:
            answers = self._backbone.predict(rows, names, batch_size=self._rows, **jobs[0].params)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].done.set_exception(error)
                return
            for job in jobs:
                self._answer([job])
            return
        for job in jobs:
            own, answers = answers[: len(job.rows)], answers[len(job.rows) :]
            job.done.set_result(own)
