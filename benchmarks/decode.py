"""Whole generations, single-token steps and prefill with a mixed batch: the bare backbone, lorary and PEFT in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from contenders import Contenders
from timing import Timing, compare

NEW_TOKENS = 64
STEPS = 8  # of one repetition


def against_bare(both: Contenders, repetitions: int) -> Iterator[list[dict[str, object]]]:
    """Three tables: whole generations, single-token steps and prefill."""
    for measure in (whole_generations, single_steps, whole_prompts):
        yield measure(both, repetitions)


def whole_generations(both: Contenders, repetitions: int, within: float = math.inf) -> list[dict[str, object]]:
    """The table of whole generations; no other turn begins ``within`` so many seconds."""
    rows = both.inputs["input_ids"].shape[0]
    timings = compare(generations(both), repetitions=repetitions, within=within)
    return rows_of(f"generation, {rows} rows x {NEW_TOKENS} tokens", timings, _differences(both))


def single_steps(both: Contenders, repetitions: int, within: float = math.inf) -> list[dict[str, object]]:
    """That of single-token steps. Short work is repeated more often."""
    rows = both.inputs["input_ids"].shape[0]
    with steps(both) as contenders:
        timings = compare(contenders, repetitions=3 * repetitions, within=within)
    return rows_of(f"{STEPS} single-token steps, {rows} rows", timings, _differences(both))


def whole_prompts(both: Contenders, repetitions: int, within: float = math.inf) -> list[dict[str, object]]:
    """That of prefill."""
    rows, tokens = both.inputs["input_ids"].shape
    timings = compare(prefills(both), repetitions=3 * repetitions, within=within)
    return rows_of(f"prefill, {rows} rows x {tokens} tokens", timings, _differences(both))


def _differences(both: Contenders) -> dict[str, str]:
    return {} if both.peft is None else {"mixed": f"{both.difference():.2g} ({both.dtype})"}


def rows_of(what: str, timings: dict[str, Timing], differences: dict[str, str]) -> list[dict[str, object]]:
    """Timings as table rows; ``differences`` from PEFT stand beside lorary's contenders that have the word in them."""
    return [
        {
            what: name,
            "ms": f"{timing.median * 1e3:.1f}",
            "over bare (min to max)": timing.ratio,
            "largest logit difference from PEFT": next(
                (text for word, text in differences.items() if name.startswith("lorary") and word in name), ""
            ),
        }
        for name, timing in timings.items()
    ]


def generations(both: Contenders) -> dict[str, Callable[[], object]]:
    """Greedy generations of a fixed length; the bare backbone first."""
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    count = len(both.names)
    contenders = {
        "bare backbone": lambda: both.plain(**settings),
        "lorary, no adapter": lambda: both.ours([None], **settings),
        "lorary, one adapter": lambda: both.ours(both.names[:1], **settings),
        "PEFT, one adapter": lambda: both.theirs(**settings),
        f"lorary, {count} adapters mixed": lambda: both.ours(both.mixed, **settings),
        f"PEFT, {count} adapters mixed": lambda: both.theirs(adapter_names=both.mixed, **settings),
    }
    return _at_hand(both, contenders)


def prefills(both: Contenders) -> dict[str, Callable[[], object]]:
    """One pass over all prompts, each time as a call of its own."""

    def once(model: Any, **choice: Any) -> object:
        with torch.no_grad():
            return model(**both.inputs, use_cache=False, **choice)

    def ours(names: list[Any]) -> object:
        with both.backbone.using(names) as model:
            return once(model)

    count = len(both.names)
    contenders = {
        "bare backbone": lambda: once(both.bare),
        "lorary, no adapter": lambda: ours([None]),
        "lorary, one adapter": lambda: ours(both.names[:1]),
        "PEFT, one adapter": lambda: once(both.peft),
        f"lorary, {count} adapters mixed": lambda: ours(both.mixed),
        f"PEFT, {count} adapters mixed": lambda: once(both.peft, adapter_names=both.mixed),
    }
    return _at_hand(both, contenders)


def _at_hand(both: Contenders, contenders: dict[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """The contenders without PEFT's, where it isn't one."""
    return {name: run for name, run in contenders.items() if both.peft is not None or not name.startswith("PEFT")}


@contextmanager
def steps(both: Contenders) -> Iterator[dict[str, Callable[[], object]]]:
    """Decoding a token for every row, each step behind a cache of the prompts' length."""
    count = len(both.names)
    choices: dict[str, Sequence[str | None]] = {
        "lorary, no adapter": [None],
        "lorary, one adapter": both.names[:1],
        f"lorary, {count} adapters mixed": both.mixed,
    }
    with ExitStack() as stack, torch.no_grad():
        contenders = {"bare backbone": _stepper(both, both.bare)} | {
            name: _stepper(both, stack.enter_context(both.backbone.using(chosen))) for name, chosen in choices.items()
        }
        if both.peft is not None:
            contenders["PEFT, one adapter"] = _stepper(both, both.peft)
            contenders[f"PEFT, {count} adapters mixed"] = _stepper(both, both.peft, adapter_names=both.mixed)
        yield contenders


def _stepper(both: Contenders, model: Any, **choice: Any) -> Callable[[], object]:
    cache = model(**both.inputs, use_cache=True, **choice).past_key_values
    token = both.inputs["input_ids"][:, -1:]

    def run() -> None:
        with torch.no_grad():
            for _ in range(STEPS):
                model(input_ids=token, past_key_values=cache, use_cache=True, **choice)
                cache.crop(-1)  # the token is taken back

    return run
