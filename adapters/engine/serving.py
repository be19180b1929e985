"""What transformers' loop calls in each step: the model under the step's routing, and each request's own choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.continuous_batching import ContinuousMixin
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

from lorary.adapters.engine.admission import Admission
from lorary.adapters.engine.request import Request
from lorary.adapters.engine.step import Step
from lorary.adapters.layer.routing import routed
from lorary.hub.errors import RequestFailedError

_BROKEN = (
    "the model answered NaN; its adapter's scale, or the prompt, is too much for the backbone's dtype: "
    "try bfloat16 or float32"
)


class ServedModel(ContinuousMixin):
    """The backbone's model as the loop calls it: each step under its own routing."""

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
        # transformers writes this one into the model's config while a forward runs, where calls of other threads read
        # it and attend to what comes later; what the loop means by it is in its mask already.
        inputs.pop("is_causal", None)
        with torch.no_grad(), routed(routing):
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
