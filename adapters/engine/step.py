"""The step that is running: which requests are in it, and how its tokens are routed."""

from __future__ import annotations

import torch

from lorary.adapters.engine.request import Request
from lorary.adapters.layer.packing import Packing
from lorary.adapters.layer.routing import Routing
from lorary.adapters.layer.step_cache import StepCache
from lorary.adapters.tiers.residency import Residency


class Step:
    """What the parts of the loop know of the step that is running; only the loop's thread uses it."""

    def __init__(self, residency: Residency, device: torch.device) -> None:
        self.count = 0
        self._residency = residency
        self._device = device
        self._requests: tuple[Request, ...] = ()
        self._packing = Packing(())
        self._fresh: tuple[Request, ...] = ()
        self._key: object = None
        self._routing: Routing | None = None
        self._kept = StepCache()

    @property
    def requests(self) -> tuple[Request, ...]:
        """All requests of this step, in the order of its tokens."""
        return self._requests

    @property
    def fresh(self) -> tuple[Request, ...]:
        """The requests that get a new token in this step, in the order of the logits' rows."""
        return self._fresh

    def schedule(self, scheduled: list[tuple[Request, int, bool]]) -> None:
        """The step's requests in the order of its tokens, how many tokens each has, and whether it gets a new one."""
        fresh = [place for place, (_, _, gets_token) in enumerate(scheduled) if gets_token]
        self._requests = tuple(request for request, _, _ in scheduled)
        self._fresh = tuple(self._requests[place] for place in fresh)
        # A step of nothing but unfinished prompts takes one token through the output layer all the same.
        self._packing = Packing([length for _, length, _ in scheduled], kept=fresh or [0])

    def routing(self) -> Routing:
        """The step's routing; the last one's for as long as the same requests go on in the same way.

        The requests themselves are compared, not their adapters: an adapter may come back to another slot, but not
        while a request holds it.
        """
        key = self._requests, self._packing.lengths, self._packing.kept
        if self._routing is None or key != self._key:
            self._close()
            adapters = [request.adapter for request in self._requests]
            self._key, self._routing = key, self._residency.route(adapters, self._packing, self._kept)
            self._await_slots()
        return self._routing

    def _await_slots(self) -> None:
        """Steps run on a stream of the loop's own, slots are filled on the default one: keep their order."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).wait_stream(torch.cuda.default_stream(self._device))

    def forget(self) -> None:
        """Free what was laid out for the last steps' adapters."""
        self._close()
        self._kept = StepCache()

    def _close(self) -> None:
        if self._routing is not None:
            self._routing.close()
        self._key, self._routing = None, None
