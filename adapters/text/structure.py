"""Answers of a given structure: every token keeps to a JSON schema or a regular expression (Willard & Louf 2023).

llguidance says which tokens may follow; the model chooses among those. Nothing of this is imported before a request
asks for it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch

from lorary.adapters.arguments import demand_unicode, shown
from lorary.hub.errors import MissingDependencyError, UsageError, first_line

_SPACE = r"(\n {0,32}| )?"
"""What may stand between the parts of a JSON text: one blank, or a new line with its indentation.

Without a bound, a small model that has nothing to say writes blanks up to the last token.
"""
_FUEL = 200_000  # llguidance's measure of work; a list of about 9,000 values takes as much
_MOST_SIGNS = 100_000  # of a schema as JSON; as many take it about two seconds, twice as many four times as long
_MOST_LEVELS = 600  # it follows references by recursion, in 3.3 kB of a stack each; 2 MB is the smallest usual one
_MOST_MULTIPLES = 100_000  # of all `multipleOf` together: it makes a state for each remainder, about two seconds' work
_END = "<|lorary: the end|>"  # a token that no model writes
_LONGEST = 200  # characters of an error


@dataclass(frozen=True)
class Beginning:
    """A structure before its first token: llguidance's ``matcher``, and the token that stands for the ``end`` to it."""

    matcher: Any
    end: int

    def copy(self) -> Beginning:
        """The same for another text."""
        return Beginning(self.matcher.deep_copy(), self.end)


class Structure:
    """What one request's text has to match; a logits processor of transformers, and one that says when it is done.

    Args:
        beginning: of this text alone.
        prompt_tokens: how many tokens come before the text.
        stop_tokens: those that end the text, where it may end.
    """

    def __init__(self, beginning: Beginning, prompt_tokens: int, stop_tokens: Sequence[int]) -> None:
        self._matcher = beginning.matcher
        self._end = beginning.end
        self._prompt_tokens = prompt_tokens
        self._stop_tokens = list(stop_tokens)
        self._read = 0  # tokens of the text that the matcher has been told of
        self._skipped = set[int]()

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [1, vocabulary], minus infinity for what can't follow ``ids`` [1, tokens].

        Raises:
            ValueError: the text doesn't match any more, or matching takes more than llguidance allows.
        """
        self._follow(ids[0, self._prompt_tokens :].tolist())
        allowed = self._allowed(scores.shape[-1]).to(scores.device)
        allowed[[token for token in self._stop_tokens if 0 <= token < len(allowed)]] = self._matcher.is_accepting()
        if wrong := self._matcher.get_error():
            raise ValueError(f"the text's structure: {_in_short(wrong)}")
        return scores.masked_fill(~allowed, -torch.inf)

    def ends(self, tokens: Sequence[int]) -> bool:
        """Is the text complete, so that nothing could follow? ``tokens`` are all of it."""
        self._follow(tokens)
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def skip(self, place: int) -> None:
        """The token in this place after the prompt is none of the text."""
        self._skipped.add(place)

    def _follow(self, tokens: Sequence[int]) -> None:
        for place, token in enumerate(tokens[self._read :], self._read):
            if token not in self._stop_tokens and place not in self._skipped:
                self._matcher.consume_token(token)
        self._read = len(tokens)

    def _allowed(self, vocabulary: int) -> torch.Tensor:
        """Which tokens may follow, [vocabulary]; the output layer may have more rows than the tokenizer has tokens."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        flags = np.zeros(vocabulary, dtype=bool)
        known = np.unpackbits(bits, bitorder="little")[:vocabulary]
        flags[: len(known)] = known
        flags[self._end :] = False
        return torch.from_numpy(flags)


def read_structure(
    tokenizer: Any, tokenizing: threading.Lock, schema: Any = None, regex: str | None = None
) -> Beginning | None:
    """The structure that a request asks for, None where it asks for none.

    Args:
        tokenizer: that of the text.
        tokenizing: to be held by whoever uses the tokenizer; not for longer, since a schema may take seconds.
        schema: a JSON schema, as an object; of the text, which is JSON then.
        regex: a regular expression in the syntax of Rust's ``regex``, of the whole text; without look-around.

    Raises:
        UsageError: both of them, a schema or an expression that can't be, or that takes more than is allowed, or a
            tokenizer that llguidance doesn't read.
        MissingDependencyError: llguidance isn't installed.
    """
    if schema is None and regex is None:
        return None
    if schema is not None and regex is not None:
        raise UsageError("schema and regex: a text has one structure; leave one of them out")
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise MissingDependencyError("not installed: llguidance; pip install 'lorary[serve]'") from error
    asked = _expression(regex) if schema is None else _written(schema)
    with tokenizing:
        vocabulary = _vocabulary(tokenizer)
    try:
        if schema is None:
            grammar = LLMatcher.grammar_from_regex(asked)
        else:
            grammar = LLMatcher.grammar_from_json_schema(asked, overrides={"whitespace_pattern": _SPACE})
        matcher = _matcher(vocabulary, grammar).deep_copy()
    except ValueError as error:
        raise UsageError(f"{'regex' if schema is None else 'schema'}: {_in_short(error)}") from error
    return Beginning(matcher, vocabulary.eos_token)


@lru_cache(maxsize=8)
def _matcher(vocabulary: Any, grammar: str) -> Any:
    """llguidance's at the beginning of a text, to be copied: many requests have the same schema."""
    from llguidance import LLMatcher

    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=_limits())
    if not matcher.is_error():
        matcher.compute_bitmask()  # what is wrong with the text's beginning is told here, and not by the loop
    if wrong := matcher.get_error():
        raise ValueError(wrong)
    return matcher


def _expression(regex: Any) -> str:
    if not isinstance(regex, str) or not regex:
        raise UsageError(f"regex={shown(regex)}: expected a regular expression")
    demand_unicode(regex)
    return regex


def _written(schema: Any) -> str:
    """A schema as JSON, if it is one that llguidance reads in a few seconds."""
    if not isinstance(schema, Mapping):
        raise UsageError(f"schema={shown(schema)}: expected a JSON schema, such as {{'type': 'object'}}")
    try:
        written = json.dumps(dict(schema), allow_nan=False)
        if len(written) > _MOST_SIGNS:
            raise UsageError(f"schema: {len(written)} characters as JSON; expected at most {_MOST_SIGNS}")
        _demand_little_work(json.loads(written))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"schema: not a JSON object ({first_line(error)})") from error
    return written


def _demand_little_work(schema: Any) -> None:
    """Refuse what would keep llguidance busy for minutes, or end the process for want of a stack."""
    deepest, references, multiples = 0, set[str](), 0
    left = [(schema, 1)]
    while left:
        part, level = left.pop()
        deepest = max(deepest, level)
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                references.add(part["$ref"])
            if type(part.get("multipleOf")) in (int, float):
                multiples += _figures(part["multipleOf"])
        values = part.values() if isinstance(part, dict) else part
        left += [(value, level + 1) for value in values if isinstance(value, (dict, list))]
    if deepest * len(references) > _MOST_LEVELS:
        raise UsageError(
            f"schema: {len(references)} different references in {deepest} levels of nesting; expected at most "
            f"{_MOST_LEVELS // deepest} there: write some of the parts where they are used"
        )
    if multiples > _MOST_MULTIPLES:
        raise UsageError(f"schema: multipleOf: expected numbers of up to {_MOST_MULTIPLES}, all of them together")


def _figures(number: float) -> int:
    """1234 for 123400 as for 0.1234: only these figures make work."""
    return int("".join(map(str, Decimal(repr(number)).normalize().as_tuple().digits)))


@cache
def _limits() -> Any:
    """What a step's matching may take: about a tenth of a second, since all requests wait for it."""
    from llguidance import LLParserLimits

    return LLParserLimits(initial_lexer_fuel=_FUEL, verbose_errors=False)


@lru_cache(maxsize=8)
def _vocabulary(tokenizer: Any) -> Any:
    """The tokenizer as llguidance reads it, about a second's work for a large one."""
    from llguidance import LLTokenizer

    try:
        backend = copy(tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        # What ends a text is the request's affair. llguidance wants a token for it, else it takes the first there is.
        backend.add_special_tokens([_END])
        made = LLTokenizer(backend.to_str(), eos_token=backend.token_to_id(_END))
    except Exception as error:  # of Rust, whose kinds Python doesn't tell apart
        raise UsageError(
            "schema and regex take a tokenizer whose tokens are bytes or sentencepiece's pieces, and this "
            f"{type(tokenizer).__name__} can't be read so ({_in_short(error)})"
        ) from error
    return made


def _in_short(error: object) -> str:
    """What llguidance says, which may be a drawing of many lines, in one."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
