"""Engine: many callers, each with its own adapter, served together by one loop on one backbone."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any

from lorary.adapters.engine.admission import Admission
from lorary.adapters.engine.compatibility import Comparison, check_backbone, check_version
from lorary.adapters.engine.decoding import Decoding, plan_decoding
from lorary.adapters.engine.request import Request
from lorary.adapters.engine.values import EngineSettings, EngineStats
from lorary.adapters.generate import PromptRow
from lorary.adapters.inference import Inference, longest_input
from lorary.adapters.residency import Residency
from lorary.hub.errors import EngineStoppedError, EngineUnsupportedError, RequestTooLongError, UsageError

_PROBES = (8, 3)  # the lengths of the prompts that are compared when an engine opens
_PROBED_TOKENS = 3


class Engine:
    """Serves requests until it is closed; made by :meth:`Backbone.engine`, best in a ``with`` block.

    Its methods may be called from any thread. The backbone goes on serving its own calls meanwhile.
    """

    def __init__(self, inference: Inference, residency: Residency, settings: EngineSettings) -> None:
        check_version()
        check_backbone(inference)
        # Only now: this module names what it needs of transformers, which the check knows how to miss.
        from lorary.adapters.engine import loop

        self.settings = settings
        self._inference = inference
        self._residency = residency
        self._numbers = itertools.count()
        self._step = loop.Step(residency)
        self._admission = Admission(residency, settings.max_running, self._start)
        self._chooser = loop.TokenChooser(self._step, self._admission)
        try:
            self._manager = loop.open_manager(inference.model, self._step, self._admission, self._chooser, settings)
        except (MemoryError, ValueError, AttributeError, RuntimeError) as error:
            raise EngineUnsupportedError(
                f"transformers can't serve {type(inference.model).__name__} with {settings}: {error}"
            ) from error
        self._capacity = loop.longest_request(self._manager)
        loop.start(self._manager)
        self._finalizer = weakref.finalize(self, loop.abandon, self._manager)
        try:
            self._compare()
        except BaseException:
            self.close()
            raise

    def submit(
        self, prompt: PromptRow, adapter: str | None = None, *, seed: int | None = None, **generate_kwargs: Any
    ) -> Request:
        """Hand in a prompt; it runs as soon as there is room, on the version that the adapter's name stands for now.

        With the same arguments, :meth:`Backbone.generate` gives the same text; a sampled one, after
        ``torch.manual_seed(seed)`` and on the same kind of device.

        Args:
            prompt: a text, or a conversation (a list of ``{"role", "content"}``), put the way the adapter was trained.
            adapter: a name, None for the bare backbone.
            seed: of the request's own random numbers, with ``do_sample``; a new one unless given.
            generate_kwargs: transformers' own (``max_new_tokens``, ``eos_token_id``, ``do_sample``, ``temperature``,
                ``top_k``, ``top_p``, ``repetition_penalty``, ...): those of ``decoding.SETTINGS``.

        Raises:
            UnknownReferenceError: an adapter that isn't loaded.
            UsageError: an empty prompt, or a setting that isn't served.
            RequestTooLongError: prompt and new tokens are more than the cache, or the model's positions, have room for.
            EngineStoppedError: the engine is closed, or has failed.
        """
        (loaded,) = self._residency.resolve([adapter])
        if loaded is not None and not self._inference.rows_first:
            raise EngineUnsupportedError(
                f"the layers of {type(self._inference.model).__name__} don't keep the tokens of a step apart, so its "
                "requests can't have adapters; use Backbone.generate"
            )
        ids = self._inference.prompt_ids(prompt, loaded)
        decoding = plan_decoding(self._inference.model, len(ids), seed, generate_kwargs)
        self._demand_room(ids, decoding)
        request = self._request(ids, loaded, decoding)
        self._admission.submit(request)
        return request

    def stats(self) -> EngineStats:
        """What it is doing and what it has done."""
        books, processor = self._admission, self._manager.batch_processor
        waiting, running, names = books.counts()
        return EngineStats(
            waiting=waiting,
            running=running,
            running_adapters=names,
            finished=books.finished,
            cancelled=books.cancelled,
            failed=books.failed,
            steps=self._step.count,
            tokens=books.tokens,
            cache_free=processor.cache.compute_free_capacity() if processor is not None else 1.0,
        )

    def close(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """Stop the loop and give its memory back; closing twice is fine.

        Args:
            drain: let the requests that are there finish first; otherwise they end with EngineStoppedError.
            timeout: the most seconds to drain for.
        """
        closed = EngineStoppedError("the engine was closed; open another one")
        self._admission.refuse(closed)
        if drain and self._manager.is_running():
            self._admission.drain(timeout)
        if self._finalizer.detach() is not None:
            self._manager.stop(block=True, hard_stop=True)
            self._manager.destroy()
        self._admission.stop(closed)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Inside

    def _start(self, request: Request) -> bool:
        """Hand a request to the loop. False when the loop has ended."""
        manager = self._manager
        manager.add_request(
            list(request.prompt),
            request_id=request.id,
            max_new_tokens=request.decoding.max_new_tokens,
            streaming=True,
            eos_token_id=list(request.decoding.stop_tokens) or -1,
        )
        # A loop that ends fails what it finds in its queue; what comes in after that, it doesn't see.
        return manager.background_thread_status.can_accept_new_requests() is None

    def _watch(self) -> None:
        """Called by those who wait: a loop that is gone without a word must not keep them waiting."""
        if not self._manager.is_running():
            self._admission.stop(EngineStoppedError("the engine's thread has ended; open another engine"))

    def _request(self, ids: Sequence[int], adapter: Any, decoding: Decoding) -> Request:
        return Request(
            f"{next(self._numbers)}",
            ids,
            adapter,
            decoding,
            self._inference.tokenizer,
            give_up=self._admission.give_up,
            watch=self._watch,
        )

    def _demand_room(self, ids: Sequence[int], decoding: Decoding) -> None:
        """Refuse what could never run: the loop would fail with it, and everybody's requests with the loop."""
        needed = len(ids) + decoding.max_new_tokens - 1  # the last token is never looked back at
        positions = longest_input(self._inference.model)
        for room, whose in ((self._capacity, "the engine's cache (cache_tokens)"), (positions, "the model")):
            if room is not None and needed > room:
                raise RequestTooLongError(
                    f"{len(ids)} prompt tokens and {decoding.max_new_tokens} new ones need {needed} places, {whose} "
                    f"has {room}: shorten the prompt, lower max_new_tokens, or open an engine or a base with more"
                )
        vocabulary = self._inference.body.get_input_embeddings().weight.shape[0]
        if max(ids) >= vocabulary:
            raise UsageError(
                f"the tokenizer gives token {max(ids)}, but the model has {vocabulary}; they don't belong together"
            )

    def _compare(self) -> None:
        """Run a few tokens of two prompts at once through the loop, and hold their logits against the model's own.

        Raises:
            EngineUnsupportedError: they differ.
        """
        comparison = Comparison(self._inference)
        self._chooser.witness = comparison.note
        vocabulary = self._inference.body.get_input_embeddings().weight.shape[0]
        decoding = Decoding(_PROBED_TOKENS, (), (), None)
        requests = [
            self._request([vocabulary * (place + 1) // (length + 1) for place in range(length)], None, decoding)
            for length in _PROBES
            if length + _PROBED_TOKENS <= self._capacity
        ]
        for request in requests:
            self._admission.submit(request)
        for request in requests:
            request.result()
        self._chooser.witness = None
        comparison.demand_equal()
        self._admission.finished, self._admission.tokens, self._step.count = 0, 0, 0
