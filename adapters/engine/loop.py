"""Where an engine meets transformers' continuous batching: its scheduler, where its results go, and its thread.

The manager is given a model of our own around the backbone's (its mixin makes anything with a model's attributes
servable), a scheduler that tells which requests are in a step, and a router that hands tokens to the requests
themselves. In a step the order is: schedule, call the model, choose tokens, deliver.
"""

from __future__ import annotations

import atexit
import threading
from typing import Any
from weakref import WeakSet

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import FIFOScheduler
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING

from lorary.adapters.engine.admission import Admission
from lorary.adapters.engine.prefixes import share_prefixes
from lorary.adapters.engine.request import Request
from lorary.adapters.engine.serving import ServedModel, TokenChooser
from lorary.adapters.engine.step import Step
from lorary.adapters.engine.values import EngineSettings
from lorary.hub.errors import EngineFailedError

_SCHEDULER = "lorary"


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
                if self.admission.running(identifier).usage.finish_reason == "failed":
                    # Where the model answered NaN, it may have begun with it in an earlier step of a long prompt.
                    self.cache.free_blocks(identifier, no_cache=True)
        cleared = super().clear_cancelled_requests()
        for state in cleared:
            self.admission.settle(state.request_id)
        if cleared:
            # Where the cache was full, those that gave way wait until a request ends. transformers counts the ends that
            # it sees itself, and not a stop string's or a caller's: the last one of these left them waiting for ever.
            self.block_new_requests = False
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


def _failure(error: Exception) -> EngineFailedError:
    failure = EngineFailedError(
        f"the engine's thread has failed ({type(error).__name__}: {error}); open another engine"
    )
    failure.__cause__ = error.with_traceback(None)  # its frames would keep the cache and the step's tensors
    return failure


class Loop:
    """transformers' manager for one engine: its cache is there from the beginning, its thread from :meth:`start`.

    Raises:
        ValueError, MemoryError, and whatever else transformers has against this model or these settings.
    """

    def __init__(
        self, model: Any, step: Step, admission: Admission, chooser: TokenChooser, settings: EngineSettings
    ) -> None:
        SCHEDULER_MAPPING.setdefault(_SCHEDULER, SlotScheduler)
        served = ServedModel(model, step, admission, chooser)
        self._manager = served.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1), _configuration(settings)
        )
        self._manager.output_router = Router(admission)
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the manager seeds everybody's random numbers
            self._manager.warmup()
        processor = self._manager.batch_processor
        processor.scheduler.step, processor.scheduler.admission = step, admission
        if settings.prefix_cache:
            share_prefixes(processor.cache, admission.running, admission.note_reused)
        self._ending, self._ended = threading.Lock(), False
        self.longest_request = int(infer_max_single_request_tokens(processor.cache))
        """How many tokens the cache has room for when a single request has all of it."""

    def start(self) -> None:
        """Start the thread, as a daemon: a thread takes that from the one that it is made in."""
        starter = threading.Thread(target=self._manager.start, daemon=True)
        starter.start()
        starter.join()
        _STARTED.add(self)

    def begin(self, request: Request) -> bool:
        """Take a request on. False when the loop has ended, or is about to."""
        self._manager.add_request(
            list(request.prompt),
            request_id=request.id,
            max_new_tokens=request.decoding.max_new_tokens,
            streaming=True,
            eos_token_id=list(request.decoding.stop_tokens) or -1,
        )
        # A loop that ends fails what it finds in its queue; what comes in after that, it doesn't see.
        return self._manager.background_thread_status.can_accept_new_requests() is None

    def is_running(self) -> bool:
        """Is the thread alive?"""
        return bool(self._manager.is_running())

    def free(self) -> float:
        """The free part of the cache, from 0 to 1."""
        processor = self._manager.batch_processor
        return float(processor.cache.compute_free_capacity()) if processor is not None else 1.0

    def stop(self) -> None:
        """End the thread after the step it is in, and let go of the cache; whoever comes second waits for the first."""
        with self._ending:
            if not self._ended:
                self._hasten()
                self._manager.stop(block=True, hard_stop=True)
                self._manager.destroy()
                self._ended = True

    def _hasten(self) -> None:
        """Let an idle loop see at once that it is to end: transformers lets it wait for up to a tenth of a second."""
        status = self._manager.background_thread_status
        status.request_stop(status.HARD_STOP, self._manager.distributed_helper.global_rank)
        self._manager.cancel_request("")  # nobody's, but it wakes the loop


_STARTED: WeakSet[Loop] = WeakSet()


@atexit.register
def _stop_all() -> None:
    """At the interpreter's end no thread may be in the midst of a step."""
    for loop in list(_STARTED):
        if loop.is_running():  # not in a fork, which has no such thread
            loop.stop()


def _configuration(settings: EngineSettings) -> ContinuousBatchingConfig:
    return ContinuousBatchingConfig(
        page_size=settings.page_tokens,
        num_blocks=-(-settings.cache_tokens // settings.page_tokens),
        max_batch_tokens=settings.batch_tokens,
        max_requests_per_batch=min(settings.max_running, settings.batch_tokens),
        scheduler_type=_SCHEDULER,
        # A cached prefix is found by its tokens alone, whichever adapter made it, unless they are given its key.
        allow_block_sharing=settings.prefix_cache,
        # Another attention would be everybody's, that of calls outside the engine too.
        auto_switch_to_flash=False,
        # Graphs and compiled code would keep the first step's routing; the next step's needs its own.
        use_cuda_graph=False,
        use_async_batching=False,
        max_blocks_per_request=0,
    )
