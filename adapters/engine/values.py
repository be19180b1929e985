"""The values that an engine takes and hands out."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lorary.adapters.arguments import whole_number
from lorary.hub.errors import UsageError

MOST_LOGPROBS = 20
"""The most likely tokens that a request may be told of in place of each; as many as OpenAI's."""


@dataclass(frozen=True)
class EngineSettings:
    """How much an engine takes on.

    Args:
        cache_tokens: how many tokens of all running requests together the cache of keys and values holds, at least 16.
        batch_tokens: the most tokens of one step; a longer prompt is taken in over several.
        page_tokens: the cache is handed out in pages of this many tokens, at least 4.
        max_running: the most requests that run at once; the others wait.
        spare_slots: how many slots its requests leave to loads, swaps and calls outside; pinned ones are none of them.
            One adapter can run in any case.
        prefix_cache: keep the keys and values of prompts, and don't compute again what a later prompt for the same
            version of the adapter begins with; whole pages only. They give way where the cache is needed.
        max_waiting: how many requests may wait, beyond which more are refused; None lets any number wait.

    Raises:
        UsageError: one of them is too small.
    """

    cache_tokens: int = 16384
    batch_tokens: int = 512
    page_tokens: int = 16
    max_running: int = 64
    spare_slots: int = 1
    prefix_cache: bool = False
    max_waiting: int | None = None

    def __post_init__(self) -> None:
        least = {"spare_slots": 0, "page_tokens": 4, "cache_tokens": 16}
        for setting in fields(self):
            value, bound = getattr(self, setting.name), least.get(setting.name, 1)
            if setting.name == "prefix_cache":
                if not isinstance(value, bool):
                    raise UsageError(f"prefix_cache={value!r}: expected True or False")
            elif setting.name != "max_waiting" or value is not None:
                whole_number(setting.name, value, bound)


@dataclass(frozen=True)
class Likelihood:
    """How likely the model found a token: before temperature, penalties and whatever else a request may have.

    ``logprob`` is the natural logarithm of its probability, and ``likeliest`` the ids of the likeliest tokens in its
    place with theirs, the likeliest first.
    """

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Completion:
    """What a request came to.

    ``finish_reason`` is ``stop`` (at one of the request's stop tokens, which is the last of ``tokens``, or at a stop
    string, with which ``text`` ends) or ``length``.
    ``digest`` is that of the adapter's version that answered, None for the bare backbone. Seconds count from the
    submission: until it began to run, until its first token, and until its last. ``logprobs`` has a value for each
    token where the request asked for them.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    adapter: str | None
    digest: str | None
    waited_seconds: float
    first_token_seconds: float
    seconds: float
    logprobs: tuple[Likelihood, ...] | None = None


@dataclass(frozen=True)
class Usage:
    """What a request has taken: tokens of its prompt and new ones.

    ``finish_reason`` is ``stop`` or ``length``, as a completion's, ``cancelled`` or ``failed``; None while it runs or
    waits.
    """

    prompt_tokens: int
    new_tokens: int
    finish_reason: str | None


@dataclass(frozen=True)
class EngineStats:
    """An engine's figures.

    ``waiting`` and ``running`` are requests at this moment, ``running_adapters`` the names of the latter's adapters;
    ``finished``, ``cancelled`` and ``failed`` count requests, ``steps`` passes of the model, and ``tokens`` what they
    generated, all since the engine was opened. ``reused_tokens`` of prompts were found in the prefix cache.
    ``cache_free`` is the free part of the cache, from 0 to 1.
    """

    waiting: int
    running: int
    running_adapters: tuple[str, ...]
    finished: int
    cancelled: int
    failed: int
    steps: int
    tokens: int
    cache_free: float
    reused_tokens: int = 0
