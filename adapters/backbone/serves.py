"""Using what is loaded: predictions, texts, logits, and their proof."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lorary.adapters.backbone.assembly import Assembly
from lorary.adapters.backbone.calls import Names
from lorary.adapters.engine import Engine, EngineSettings
from lorary.adapters.layer.compiled import compile_body
from lorary.adapters.predict.base import Row
from lorary.adapters.proving.proof import GoldenReport
from lorary.adapters.text.generate import PromptRow


class Serves(Assembly):
    """Calls, each with the adapters that it names."""

    def compile(self, **options: Any) -> None:
        """Compile the backbone with ``torch.compile``; loading, swapping and mixing adapters don't compile it again.

        Args:
            options: those of ``torch.compile``; ``mode="reduce-overhead"`` records CUDA graphs, for all but the steps
                of a cache that grows.

        Raises:
            UsageError: the backbone is spread over several devices.
        """
        compile_body(self.body, lambda: self._residency.arena, options)

    @contextmanager
    def using(self, adapter: Names, *, lengths: Sequence[int] | None = None) -> Iterator[Any]:
        """Within the block, in this thread, calls of the model use ``adapter`` (or one per row of the batch).

        Yields the model to call: the adapter's task model where it has a head, the backbone's own model otherwise.

        Args:
            adapter: a name, or a name (None: the bare backbone) for each row.
            lengths: for a packed batch, one row [1, tokens] that holds several sequences one after the other: the
                tokens of each, and ``adapter`` is then one per sequence. Keeping the sequences from attending to each
                other is the caller's part (``position_ids`` that begin anew, or a mask).

        Raises:
            UnknownReferenceError: an adapter that isn't loaded.
            UsageError: lengths and adapters of different number.
            RoutingError: when the model is called, on a row whose tokens aren't those of ``lengths``.
        """
        with self._calls.using(adapter, lengths) as model:
            yield model

    def predict(
        self,
        inputs: Row | Sequence[Row],
        adapter: Names = None,
        *,
        batch_size: int = 32,
        **params: Any,
    ) -> Any:
        """Predict with one adapter for all rows or one per row, in the shapes of ``transformers.pipeline``.

        Args:
            inputs: a text, a mapping (``{"text", "text_pair"}``, ``{"question", "context"}`` or the adapter's own
                columns), or a list of them.
            adapter: a name, or a name (None: the bare backbone) for each row; tasks may mix.
            batch_size: rows per pass.
            params: the pipeline's own parameters (``top_k``, ``aggregation_strategy``, ...); where tasks generate,
                those of ``generate``. Each goes to all tasks of the call that take it.

        Returns:
            For a list, one prediction per row; for a single row, what the task's pipeline returns for one.

        Raises:
            UnknownReferenceError: an adapter that isn't loaded.
            UsageError: rows and adapters of different number, a row without its text, or a parameter that no task
                takes.
        """
        return self._calls.predict(inputs, adapter, batch_size, params)

    def generate(
        self,
        prompts: PromptRow | Sequence[PromptRow],
        adapter: Names = None,
        *,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        schema: Mapping[str, Any] | None = None,
        regex: str | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Generate text with one adapter for all prompts or one per prompt, in one batch.

        Args:
            prompts: a text or a list of texts (or of conversations, each a list of ``{"role", "content"}``); each is
                put the way its adapter was trained.
            adapter: a name, or a name (None: the bare backbone) for each prompt.
            tools: what may be called in answer to a conversation, as transformers' ``apply_chat_template`` takes it:
                JSON schemas, or functions; or a list of them (or None) for each prompt.
            chat_template_kwargs: what else the chat templates of conversations are told by name, such as
                ``{"enable_thinking": False}``; or a table (or None) for each. Else what an adapter was trained with.
            schema: a JSON schema; each text is JSON, and valid by it, as of :meth:`Engine.submit`.
            regex: a regular expression that each text matches, as there.
            generate_kwargs: transformers' own (``max_new_tokens``, ``num_beams``, ``do_sample``, ...).

        Returns:
            The new text of each prompt (a list of them with ``num_return_sequences``); for a single prompt, its text.

        Raises:
            UnknownReferenceError: an adapter that isn't loaded.
            UsageError: the backbone has no language-modelling head, a prompt is empty, prompts and adapters of
                different number, a tool has no name, a template knows nothing of what it is told, or a schema that
                can't be.
            MissingDependencyError: llguidance, which schemas take, isn't installed.
        """
        asked = {"schema": schema, "regex": regex}
        asked = generate_kwargs | {name: value for name, value in asked.items() if value is not None}
        return self._calls.generate(prompts, adapter, tools, chat_template_kwargs, asked)

    def engine(self, **settings: Any) -> Engine:
        """Serve many callers at once by continuous batching, each with its own adapter; best in a ``with`` block.

        Args:
            settings: ``cache_tokens``, ``batch_tokens``, ``page_tokens``, ``max_running``, ``spare_slots`` and
                ``prefix_cache``, as for :class:`~lorary.adapters.engine.EngineSettings`.

        Raises:
            EngineUnsupportedError: the model, its attention or the installed transformers isn't up to it.
            UsageError: one of the numbers is too small.
        """
        return Engine(self._inference, self._residency, self._peft, EngineSettings(**settings))

    def logits(self, rows: Sequence[Sequence[int]], adapter: str | None) -> list[torch.Tensor]:
        """Logits for token rows, one row at a time (no padding), float32 on the CPU.

        Returns:
            For each row [classes] or [tokens, classes] through the adapter's head ([tokens, 2], start and end, for
            question answering), [tokens, vocabulary] from a language model, or [tokens, hidden] where there is no head
            and from an embedding adapter.

        Raises:
            UnknownReferenceError: an adapter that isn't loaded.
            UsageError: a row without tokens, or with one that the vocabulary lacks.
        """
        return self._calls.logits(rows, adapter)

    def verify(self, name: str) -> GoldenReport:
        """Recompute an adapter's golden logits through the slots it is served from.

        Raises:
            GoldenMismatchError: they differ, in the arithmetic of training, by more than the tolerance.
            UnknownReferenceError: nothing is loaded under ``name``.
        """
        return self._calls.verify(name, self.numerics)

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """An adapter's tensors as they are served, under its checkpoint's keys: float32 on the CPU.

        Raises:
            UnknownReferenceError: nothing is loaded under ``name``.
        """
        return self._calls.state(name)
