"""Engine: many callers, each with its own adapter, served together by one loop on one backbone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

from lorary.adapters.arguments import (
    adapter_name,
    demand_known,
    demand_unicode,
    is_whole,
    shown,
    token_rows,
    whole_number,
)
from lorary.adapters.collected import when_collected
from lorary.adapters.engine.admission import Admission
from lorary.adapters.engine.compatibility import Comparison, check_backbone, check_version, most_positions
from lorary.adapters.engine.decoding import Decoding, plan_decoding
from lorary.adapters.engine.request import Request
from lorary.adapters.engine.step import Step
from lorary.adapters.engine.values import MOST_LOGPROBS, EngineSettings, EngineStats
from lorary.adapters.running.inference import Inference
from lorary.adapters.text.asked import apart, ask
from lorary.adapters.text.generate import PromptRow, demand_prompt, manner_of
from lorary.adapters.text.structure import read_structure
from lorary.adapters.through_peft.book import PeftBook
from lorary.adapters.tiers.residency import Residency
from lorary.hub.errors import (
    EngineStoppedError,
    EngineUnsupportedError,
    RequestFailedError,
    RequestTooLongError,
    UsageError,
)

_PROBES = (8, 3)  # the lengths of the prompts that are compared when an engine opens
_PROBED_TOKENS = 3
_SIGNS = 16  # that a token may stand for at most, where no token of the vocabulary is longer


class Engine:
    """Serves requests until it is closed; made by :meth:`Backbone.engine`, best in a ``with`` block.

    Its methods may be called from any thread. The backbone goes on serving its own calls meanwhile.
    """

    def __init__(self, inference: Inference, residency: Residency, peft: PeftBook, settings: EngineSettings) -> None:
        check_version()
        check_backbone(inference)
        # Only now: these modules name what it needs of transformers, which the check knows how to miss.
        from lorary.adapters.engine.loop import Loop
        from lorary.adapters.engine.serving import TokenChooser

        name = type(inference.model).__name__
        self.settings = settings
        self._inference = inference
        self._longest_token = max([_SIGNS, *map(len, inference.tokenizer.get_vocab())])
        self._residency = residency
        self._peft = peft
        self._numbers = itertools.count()
        self._step = Step(residency, inference.device)
        self._admission = Admission(residency, settings.max_running, settings.spare_slots, settings.max_waiting)
        self._chooser = TokenChooser(self._step, self._admission)
        try:
            self._loop = Loop(inference.model, self._step, self._admission, self._chooser, settings)
        except (MemoryError, ValueError, AttributeError, RuntimeError) as error:
            raise EngineUnsupportedError(
                f"transformers can't serve {name} with {settings}: {error}; use Backbone.generate"
            ) from error
        self._admission.connect(self._loop)
        self._loop.start()
        # The loop's thread knows nothing of the engine, so that an engine that is simply dropped ends it.
        self._finalizer = when_collected(self, self._loop.stop)
        try:
            self._compare()
        except (EngineStoppedError, RequestFailedError) as error:
            self.close()
            raise EngineUnsupportedError(
                f"{name} fails in continuous batching: {error.__cause__ or error}; use Backbone.generate"
            ) from error
        except BaseException:
            self.close()
            raise

    def submit(
        self,
        prompt: PromptRow | Sequence[int],
        adapter: str | None = None,
        *,
        seed: int | None = None,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        open_ended: bool = False,
        logprobs: int | None = None,
        schema: Mapping[str, Any] | None = None,
        regex: str | None = None,
        **generate_kwargs: Any,
    ) -> Request:
        """Hand in a prompt; it runs as soon as there is room, on the version that the adapter's name stands for now.

        With the same arguments, :meth:`Backbone.generate` gives the same text; a sampled one, after
        ``torch.manual_seed(seed)`` and on the same kind of device. OpenAI's penalties are the engine's alone.

        Args:
            prompt: a text, or a conversation (a list of ``{"role", "content"}``), put the way the adapter was trained;
                or token ids, which are taken as they stand.
            adapter: a name, None for the bare backbone.
            seed: of the request's own random numbers, with ``do_sample``; a new one unless given.
            tools: what may be called in answer to a conversation: JSON schemas, or functions.
            chat_template_kwargs: what else its chat template is told, as for :meth:`Backbone.generate`.
            open_ended: where neither the call, the adapter nor the base says how many tokens may follow, as many as
                there is room for, in place of transformers' 20.
            logprobs: tell with each token how likely it was, and of so many of the likeliest in its place (20 at most).
            schema: a JSON schema; the text is JSON, and valid by it, unless it is cut off by ``max_new_tokens``.
            regex: a regular expression that the whole text matches, in the syntax of Rust's ``regex``. Where the
                tokenizer's tokens are sentencepiece's pieces, a blank that the match begins with isn't in the text.
            generate_kwargs: transformers' own (``max_new_tokens``, ``eos_token_id``, ``do_sample``, ``temperature``,
                ``top_k``, ``top_p``, ``repetition_penalty``, ``stop_strings``, ...): those of ``decoding.SETTINGS``.
                And OpenAI's: ``frequency_penalty`` and ``presence_penalty`` (-2 to 2) are taken from the logits of
                what has been generated, for each time and once; ``logit_bias`` has numbers (-100 to 100) by token
                ids, which are added to their logits.

        Raises:
            UnknownReferenceError: an adapter that isn't loaded.
            UnsupportedAdapterError: one that runs through PEFT.
            UsageError: an empty prompt, a tool without a name, what the chat template doesn't know, a setting that
                isn't served, or a schema that can't be.
            MissingDependencyError: llguidance, which schemas take, isn't installed.
            RequestTooLongError: prompt and new tokens are more than the cache, or the model's positions, have room for.
            CheckpointError: the adapter's files have to be read again, and can't be, or have changed.
            EngineStoppedError: the engine is closed, or has failed.
            EngineFullError: as many requests wait as may (``max_waiting``).
        """
        self._inference.demand_evaluation()
        demand_unicode(prompt)
        demand_unicode(tools)
        demand_unicode(chat_template_kwargs)
        adapter = None if adapter is None else adapter_name(adapter)
        told = None if logprobs is None else whole_number("logprobs", logprobs, 0, MOST_LOGPROBS)
        with self._residency.lock:
            self._peft.refuse(adapter, "the engine")
            (loaded,) = self._residency.resolve([adapter])
        if loaded is not None and not self._inference.rows_first:
            raise EngineUnsupportedError(
                f"the layers of {type(self._inference.model).__name__} don't keep the tokens of a step apart, so its "
                "requests can't have adapters; use Backbone.generate"
            )
        ids = self._ids(prompt, loaded, tools, chat_template_kwargs)
        own = self._inference.own_settings(loaded, generate_kwargs)
        if open_ended:
            own = self._left(len(ids)) | own
        model, tokenizer, tokenizing = (
            self._inference.model,
            self._inference.tokenizer_of(loaded),
            self._inference.tokenizing,
        )
        beginning = read_structure(tokenizer, tokenizing, schema, regex)
        with tokenizing:
            decoding = plan_decoding(model, ids, seed, generate_kwargs, own, tokenizer, beginning)
        self._demand_room(ids, decoding)
        if loaded is not None:
            # Files are read here, in the caller's thread: admission is everybody's.
            self._residency.prefetch(loaded, to_slot=False)
        request = self._request(ids, loaded, decoding, told)
        self._admission.submit(request)
        return request

    def stats(self) -> EngineStats:
        """What it is doing and what it has done."""
        books = self._admission
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
            cache_free=self._loop.free(),
            reused_tokens=books.reused,
        )

    @property
    def stopped(self) -> str | None:
        """Why it takes no requests any more: it was closed, or its thread has failed; None while it does."""
        return self._admission.stopped

    def close(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """Stop the loop and give its memory back; closing twice is fine.

        Args:
            drain: let the requests that are there finish first; otherwise they end with EngineStoppedError.
            timeout: the most seconds to drain for.
        """
        closed = EngineStoppedError("the engine was closed; open another one")
        self._admission.refuse(closed)
        if drain:
            self._admission.drain(timeout)
        self._admission.end(closed)
        self._finalizer.detach()
        self._loop.stop()
        self._admission.stop(closed)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Inside

    def _request(self, ids: Sequence[int], adapter: Any, decoding: Decoding, told: int | None = None) -> Request:
        return Request(
            f"{next(self._numbers)}",
            ids,
            adapter,
            decoding,
            self._inference.tokenizer_of(adapter),
            self._admission,
            told,
        )

    def _ids(self, prompt: PromptRow | Sequence[int], adapter: Any, tools: Any, told: Any) -> list[int]:
        """A prompt's tokens."""
        if isinstance(prompt, (list, tuple)) and prompt and is_whole(prompt[0]):
            if tools or told:
                raise UsageError("tools, chat_template_kwargs: only a chat template is told of them; pass no token ids")
            self._demand_few(f"{len(prompt)} tokens", len(prompt))
            return token_rows([prompt], self._inference.vocabulary)[0]
        row = cast(PromptRow, prompt)
        if not manner_of(adapter).cuts:
            self._demand_readable(row)
        return self._inference.prompt_ids(ask(demand_prompt(row), tools, told), adapter, self._demand_short)

    def _left(self, prompt_tokens: int) -> dict[str, int]:
        """As many new tokens as a prompt leaves room for; nothing where the base says how many."""
        base = self._inference.model.generation_config
        if base.max_new_tokens is not None or base.max_length is not None:
            return {}
        return {"max_new_tokens": max(self._room() - prompt_tokens + 1, 1)}

    def _room(self) -> int:
        """How many tokens a request may have in all."""
        rooms = (self._loop.longest_request, most_positions(self._inference.model))
        return min(room for room in rooms if room is not None)

    def _demand_readable(self, prompt: PromptRow) -> None:
        """Refuse megabytes before they are read: it takes minutes, and gigabytes, and keeps other prompts waiting."""
        said: Any = demand_prompt(apart(prompt).prompt)
        texts = [said] if isinstance(said, str) else [dict(turn).get("content") for turn in said]
        self._demand_short("".join(text for text in texts if isinstance(text, str)))

    def _demand_short(self, text: str) -> None:
        """The same of a text, with all that a template has written: tools, too."""
        self._demand_few(f"{len(text)} signs", len(text) // self._longest_token)

    def _demand_few(self, length: str, tokens: int) -> None:
        """Refuse a prompt of this length, that is at least so many tokens."""
        if tokens > self._room():
            raise RequestTooLongError(
                f"a prompt of {length} is far more than the {self._room()} tokens that there is room for: shorten "
                "the prompt, or open an engine or a base with more"
            )

    def _demand_room(self, ids: Sequence[int], decoding: Decoding) -> None:
        """Refuse what could never run: the loop would fail with it, and everybody's requests with the loop."""
        most = decoding.max_new_tokens
        needed = len(ids) + most - 1  # the last token is never looked back at
        cache = self._loop.longest_request, "the engine's cache (cache_tokens)"
        for room, whose in (cache, (most_positions(self._inference.model), "the model")):
            if room is not None and needed > room:
                raise RequestTooLongError(
                    f"{len(ids)} prompt tokens and {shown(most)} new ones need {shown(needed)} places, {whose} "
                    f"has {room}: shorten the prompt, lower max_new_tokens, or open an engine or a base with more"
                )
        demand_known(max(ids), self._inference.vocabulary)

    def _compare(self) -> None:
        """Run a few tokens of two prompts at once through the loop, and hold their logits against the model's own.

        Raises:
            EngineUnsupportedError: they differ.
        """
        comparison = Comparison(self._inference)
        self._chooser.witness = comparison.note
        vocabulary = self._inference.vocabulary
        decoding = Decoding(_PROBED_TOKENS, (), (), None)
        requests = [
            self._request([vocabulary * (place + 1) // (length + 1) for place in range(length)], None, decoding)
            for length in _PROBES
        ]
        for request in requests:
            self._admission.submit(request)
        for request in requests:
            request.result()
        self._chooser.witness = None
        comparison.demand_equal()
        self._admission.finished, self._admission.tokens, self._step.count = 0, 0, 0
