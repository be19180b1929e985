"""What transformers' loop calls in each step: the model under the step's routing, and each request's own choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.continuous_batching import ContinuousMixin
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutput

from lorary.adapters.base.memory import out_of_memory
from lorary.adapters.engine.admission import Admission
from lorary.adapters.engine.request import Request
from lorary.adapters.engine.step import Step
from lorary.adapters.engine.values import Likelihood
from lorary.adapters.layer.routing import routed
from lorary.hub.errors import RequestFailedError

_BROKEN = (
    "the model answered NaN; its adapter's scale, or the prompt, is too much for the backbone's dtype: "
    "try bfloat16 or float32"
)


class ServedModel(ContinuousMixin):
    """The backbone's model as the loop calls it: each step under its own routing."""

    def __init__(self, model: Any, step: Step, admission: Admission, chooser: LogitsProcessor) -> None:
        self._model = model
        self._step = step
        self._admission = admission
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
        try:
            with torch.no_grad(), routed(routing):
                return self._model(**inputs)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            self._fail(error.with_traceback(None))  # its frames would keep the step's tensors
        # What the loop makes of these is nobody's; it lets go of who has failed before its next step.
        tokens = max(len(step.fresh), 1) if "logits_to_keep" in inputs else inputs["input_ids"].shape[1]
        return CausalLMOutput(logits=torch.zeros(1, tokens, 1, device=inputs["input_ids"].device))

    def _fail(self, error: Exception) -> None:
        """End the step's requests, which have no keys and values of its tokens."""
        requests = self._step.requests
        for request in requests:
            failure = RequestFailedError(
                f"request {request.id}: memory ran out in a step of {len(requests)} requests; ask again, or open an "
                "engine with fewer batch_tokens or max_running"
            )
            failure.__cause__ = error
            self._admission.give_up(request, failure)

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
        asked: list[tuple[Request, torch.Tensor, torch.Tensor]] = []
        for request, row, is_broken in zip(requests, scores, broken, strict=False):
            if request.done:  # the step had no memory
                continue
            if self.witness is not None:
                self.witness(request, row)
            if is_broken:
                self._admission.give_up(request, RequestFailedError(f"request {request.id}: {_BROKEN}"))
                continue
            logprobs = None if request.told is None else row.log_softmax(dim=-1)  # first: choosing may write to the row
            if logprobs is None and request.decoding.plain:
                continue
            token = self._choose(request, row)
            if logprobs is not None and token is not None:
                asked.append((request, logprobs, token))
        if asked:
            _tell(asked)
        return scores

    def _choose(self, request: Request, row: torch.Tensor) -> torch.Tensor | None:
        """The token, [1], which is now the likeliest of the row; None where choosing fails, and the request with it."""
        try:
            token = request.decoding.choose(row, request.prompt + request.tokens)
        except Exception as error:
            failure = RequestFailedError(f"request {request.id}: choosing a token failed: {error}")
            failure.__cause__ = error
            self._admission.give_up(request, failure)
            return None
        row.fill_(-torch.inf).index_fill_(0, token, 0.0)
        return token


def _tell(asked: Sequence[tuple[Request, torch.Tensor, torch.Tensor]]) -> None:
    """Note how likely tokens were: requests with their log probabilities [vocabulary] and what was chosen, [1].

    All of a step's together: the host waits for a device that has computed its logits already.
    """
    rows = torch.stack([logprobs for _, logprobs, _ in asked])
    chosen = rows.gather(1, torch.stack([token for _, _, token in asked])).squeeze(1).tolist()
    most = min(max(request.told or 0 for request, _, _ in asked), rows.shape[1])
    values, ids = (part.tolist() for part in rows.topk(most))
    for place, (request, _, _) in enumerate(asked):
        best = tuple(zip(ids[place], values[place], strict=True))[: request.told]
        request.note(Likelihood(chosen[place], best))
