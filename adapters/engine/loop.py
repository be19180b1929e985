"""Where an engine meets transformers' continuous batching: the model it calls, its scheduler, and where results go.

The manager is given a model of our own around the backbone's (its mixin makes anything with a model's attributes
servable), a scheduler that tells which requests are in a step, and a router that hands tokens to the requests
themselves. In a step the order is: schedule, call the model, choose tokens, deliver.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousMixin, FIFOScheduler
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

from lorary.adapters.compiled import eagerly
from lorary.adapters.engine.admission import Admission
from lorary.adapters.engine.request import Request
from lorary.adapters.engine.values import EngineSettings
from lorary.adapters.packing import Packing
from lorary.adapters.residency import Residency
from lorary.adapters.routing import Routing, routed
from lorary.hub.errors import EngineStoppedError, RequestFailedError

_SCHEDULER = "lorary"


class Step:
    """What the parts of the loop know of the step that is running; only the loop's thread uses it."""

    def __init__(self, residency: Residency) -> None:
        self.count = 0
        self._residency = residency
        self._requests: tuple[Request, ...] = ()
        self._packing = Packing(())
        self._fresh: tuple[Request, ...] = ()
        self._key: object = None
        self._routing: Routing | None = None

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
            self.forget()
            adapters = [request.adapter for request in self._requests]
            self._key, self._routing = key, self._residency.route(adapters, self._packing)
        return self._routing

    def forget(self) -> None:
        """Free what was laid out for the last step's adapters."""
        if self._routing is not None:
            self._routing.close()
        self._key, self._routing = None, None


class ServedModel(ContinuousMixin):
    """The backbone's model as the loop calls it: each step under its own routing, and never compiled."""

    def __init__(self, model: Any, step: Step, chooser: LogitsProcessor) -> None:
        self._model = model
        self._step = step
        self._chooser = chooser

    def __call__(self, **inputs: Any) -> Any:
        """A step: its requests' tokens in one packed row."""
        step = self._step
        routing = step.routing()
        step.count += 1
        if "logits_to_keep" in inputs:
            # transformers fills up with the first token where a request gets no new one.
            inputs["logits_to_keep"] = inputs["logits_to_keep"][: max(len(step.fresh), 1)]
        with eagerly(), routed(routing):
            return self._model(**inputs)

    def eval(self) -> ServedModel:
        """Itself: a backbone is always in evaluation mode."""
        return self

    def _get_logits_processor(self, generation_config: GenerationConfig) -> LogitsProcessorList:
        return LogitsProcessorList([self._chooser])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class TokenChooser(LogitsProcessor):
    """Leaves each request's own choice the likeliest token of its row, which is what the loop then takes.

    The loop itself samples for all requests or for none, and from one source of random numbers.
    """

    supports_continuous_batching = True

    def __init__(self, step: Step, admission: Admission) -> None:
        self.witness: Callable[[Request, torch.Tensor], None] | None = None
        self._step = step
        self._admission = admission

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Float32 logits [rows, vocabulary]; the first rows are those of the requests that get a new token."""
        requests = self._step.fresh
        broken = scores[: len(requests)].amax(dim=-1).isnan().tolist()
        for request, row, is_broken in zip(requests, scores, broken, strict=False):
            if self.witness is not None:
                self.witness(request, row)
            if is_broken:
                self._admission.give_up(request, RequestFailedError(f"request {request.id}: {_BROKEN}"))
            elif not request.decoding.plain:
                self._choose(request, row)
        return scores

    def _choose(self, request: Request, row: torch.Tensor) -> None:
        try:
            token = request.decoding.choose(row, request.prompt + request.tokens)
        except Exception as error:
            failure = RequestFailedError(f"request {request.id}: choosing a token failed: {error}")
            failure.__cause__ = error
            self._admission.give_up(request, failure)
            return
        row.fill_(-torch.inf).index_fill_(0, token, 0.0)


_BROKEN = (
    "the model answered NaN; its adapter's scale, or the prompt, is too much for the backbone's dtype: "
    "try bfloat16 or float32"
)


class SlotScheduler(FIFOScheduler):
    """transformers' scheduler, which besides tells the engine what is in a step, and asks it who has been given up."""

    step: Step
    admission: Admission

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        """As transformers has it."""
        batch = super().schedule_batch(token_budget, cache_budget)
        self.step.schedule(
            [
                (self.admission.running(future.state.request_id), future.query_length, future.has_new_token)
                for future in batch[0] or ()
            ]
        )
        return batch

    def clear_cancelled_requests(self) -> Any:
        """Let go of requests that were given up. The loop comes by here before every step, and while it idles."""
        for identifier in self.admission.given_up():
            # One that isn't here yet is on its way.
            if identifier in self.active_requests or identifier in self.waiting_requests:
                self.set_request_cancellation(identifier)
        cleared = super().clear_cancelled_requests()
        for state in cleared:
            self.admission.settle(state.request_id)
        if not self.active_requests:
            self.step.forget()
        self.admission.admit()  # slots that other calls have left
        return cleared


class Router(OutputRouter):
    """Hands what the loop makes to the requests."""

    def __init__(self, admission: Admission) -> None:
        super().__init__()
        self._admission = admission

    def deliver(self, output: Any) -> None:
        """A request's tokens so far."""
        self._admission.advance(output.request_id, output.generated_tokens, done=output.is_finished())

    def deliver_batch(self, outputs: list[Any]) -> None:
        """Those of several requests."""
        for output in outputs:
            self.deliver(output)

    def fail_and_deliver(self, state: Any, error: Exception) -> None:
        """The loop fails requests when it ends, for whatever reason, and then all of them."""
        self._admission.stop(_failure(error))


def _failure(error: Exception) -> EngineStoppedError:
    failure = EngineStoppedError(
        f"the engine's thread has failed ({type(error).__name__}: {error}); open another engine"
    )
    failure.__cause__ = error
    return failure


def open_manager(model: Any, step: Step, admission: Admission, chooser: TokenChooser, settings: EngineSettings) -> Any:
    """transformers' manager for these parts, with its cache in memory and its thread not yet started.

    Raises:
        ValueError, MemoryError, and whatever else transformers has against this model or these settings.
    """
    SCHEDULER_MAPPING.setdefault(_SCHEDULER, SlotScheduler)
    config = ContinuousBatchingConfig(
        page_size=settings.page_tokens,
        num_blocks=-(-settings.cache_tokens // settings.page_tokens),
        max_batch_tokens=settings.batch_tokens,
        max_requests_per_batch=min(settings.max_running, settings.batch_tokens),
        scheduler_type=_SCHEDULER,
        # A cached prefix is found by its tokens alone, whichever adapter made it.
        allow_block_sharing=False,
        # Another attention would be everybody's, that of calls outside the engine too.
        auto_switch_to_flash=False,
        # Graphs and compiled code would keep the first step's routing; the next step's needs this one's tokens.
        use_cuda_graph=False,
        use_async_batching=False,
        max_blocks_per_request=0,
    )
    served = ServedModel(model, step, chooser)
    manager = served.init_continuous_batching(GenerationConfig(do_sample=False, eos_token_id=-1), config)
    manager.output_router = Router(admission)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # the manager seeds everybody's random numbers
        manager.warmup()
    scheduler = manager.batch_processor.scheduler
    scheduler.step, scheduler.admission = step, admission
    return manager


def longest_request(manager: Any) -> int:
    """How many tokens the cache has room for when a single request has all of it."""
    return int(infer_max_single_request_tokens(manager.batch_processor.cache))


def start(manager: Any) -> None:
    """Start the loop, in a daemon thread: a thread takes that from the one that it is made in."""
    starter = threading.Thread(target=manager.start, daemon=True)
    starter.start()
    starter.join()


def abandon(manager: Any) -> None:
    """End the loop of an engine that nobody closed and nobody has any more, without waiting for it."""
    if manager.is_running():
        manager.stop(block=False, hard_stop=True)
