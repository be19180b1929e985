"""Extractive question answering: a span of the context, in the shape of transformers 4's question-answering pipeline.

transformers 5 has no such pipeline, so both the windows and their reading are written here, after what its
documentation promised: ``{"score", "start", "end", "answer"}``, positions in characters of the context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lorary.adapters.arguments import whole_number
from lorary.adapters.predict.base import Row, Setting, read_column
from lorary.hub.errors import UsageError
from lorary.hub.manifest import Answering

LONGEST_WINDOW = 384
"""Tokens of a window where neither the call nor the adapter says; with :data:`STRIDE`, transformers' defaults."""
STRIDE = 128
_ANSWER_TOKENS = 15


@dataclass(frozen=True)
class Window:
    """A question with a part of its context, as token ids.

    ``spans`` gives each token's place in the context, [start, end) in characters, None for all other tokens;
    ``words`` the word of the context that it belongs to. ``null`` is the token that stands for "no answer".
    """

    encoding: Mapping[str, list[int]]
    spans: tuple[tuple[int, int] | None, ...]
    words: tuple[int | None, ...]
    null: int


class QuestionAnsweringRows:
    """``{"score", "start", "end", "answer"}`` per row, or with ``top_k`` above 1 a list of them.

    A window's start and end logits each become probabilities over its context's tokens and the one for "no answer"; a
    span's score is the product of its two, and a span that several windows show has its best score. Of the same score,
    the earlier span wins.

    ``handle_impossible_answer``: "no answer" competes too, as an empty answer; its score is the least that any window
    gives it, since an answer in one window is enough. ``max_answer_len``: the most tokens of an answer. Both are the
    adapter's own unless given; where neither says, no empty answers and 15 tokens.
    ``align_to_words`` (True): answers end where words do. ``max_seq_len`` and ``doc_stride``: a window's tokens and by
    how many of them windows overlap; the adapter's own unless given.
    """

    parameters: ClassVar = frozenset(
        {"top_k", "handle_impossible_answer", "max_answer_len", "align_to_words", "max_seq_len", "doc_stride"}
    )

    def __init__(self, setting: Setting, params: Mapping[str, Any]) -> None:
        preprocessing = setting.preprocessing
        params = {name: value for name, value in params.items() if value is not None}  # as the pipelines take it
        self._tokenizer, self._columns, self._prefix = (
            setting.tokenizer, preprocessing.columns, preprocessing.prefix,
        )  # fmt: skip
        longest = preprocessing.max_length or min(LONGEST_WINDOW, setting.longest or LONGEST_WINDOW)
        self._limit = whole_number("max_seq_len", params.get("max_seq_len", longest))
        if setting.longest and self._limit > setting.longest:
            raise UsageError(f"max_seq_len={self._limit}: this backbone takes at most {setting.longest} tokens")
        stride = params.get("doc_stride", preprocessing.stride)
        self._stride = None if stride is None else whole_number("doc_stride", stride, least=0)
        self._top_k = whole_number("top_k", params.get("top_k", 1))
        own = setting.answering or Answering(_ANSWER_TOKENS)
        self._answer_tokens = whole_number("max_answer_len", params.get("max_answer_len", own.max_tokens))
        self._impossible = bool(params.get("handle_impossible_answer", own.impossible))
        self._whole_words = bool(params.get("align_to_words", True))

    def encode(self, row: Row) -> list[dict[str, Any]]:
        """The windows of a row, given as ``{"question", "context"}`` or under the adapter's own column names."""
        if not isinstance(row, Mapping):
            raise UsageError(f"expected a mapping with 'question' and 'context', found {type(row).__name__}")
        question, context = (read_column(row, self._columns, role) for role in ("question", "context"))
        for role, text in (("question", question), ("context", context)):
            if not text.strip():
                raise UsageError(f"a row's {role} is empty")
        made = windows(self._tokenizer, self._prefix + question, context, limit=self._limit, stride=self._stride)
        return [
            {name: torch.tensor([values], device="cpu") for name, values in window.encoding.items()}
            | {"window": window, "context": context}
            for window in made
        ]

    def decode(self, pieces: list[dict[str, Any]], logits: list[torch.Tensor]) -> Any:
        """The best answers, from start and end logits [tokens, 2] of each window."""
        context = pieces[0]["context"]
        scores: dict[tuple[int, int], float] = {}
        empty = 1.0
        for piece, own in zip(pieces, logits, strict=True):
            found, nothing = self._read(piece["window"], own)
            empty = min(empty, nothing)
            for span, score in found:
                scores[span] = max(score, scores.get(span, 0.0))
        answers = [_answer(context, span, score) for span, score in scores.items()]
        if self._impossible:
            answers.append({"score": empty, "start": 0, "end": 0, "answer": ""})
        answers.sort(key=lambda answer: (-answer["score"], answer["start"], answer["end"]))
        return answers[0] if self._top_k == 1 else answers[: self._top_k]

    def _read(self, window: Window, logits: torch.Tensor) -> tuple[list[tuple[tuple[int, int], float]], float]:
        """The window's ``top_k`` best spans, in characters, with their scores, and the score of no answer."""
        starts, ends = _probabilities(window, logits)
        nothing = float(starts[window.null] * ends[window.null])
        inside = torch.tensor([span is not None for span in window.spans], device="cpu")
        starts, ends = (values.masked_fill(~inside, 0.0) for values in (starts, ends))
        found: dict[tuple[int, int], float] = {}
        for first, last, score in _best_first(starts, ends, self._answer_tokens, inside):
            found.setdefault(_characters(window, first, last, self._whole_words), score)
            if len(found) == self._top_k:
                break
        return list(found.items()), nothing


def windows(tokenizer: Any, question: str, context: str, *, limit: int, stride: int | None = None) -> list[Window]:
    """A question with each part of its context: the question comes first, whichever side the tokenizer pads on.

    "No answer" is the classifier token, else the beginning of the sequence, else the first token, as in transformers'
    SQuAD example. Training and prediction both cut their windows here.

    Args:
        tokenizer: a fast one.
        question: the question, with its prefix.
        context: the text that holds the answer.
        limit: the most tokens of a window.
        stride: by how many tokens of context windows overlap; 128 unless given, less where the windows are short.

    Raises:
        UsageError: the question leaves no room for the context, or no more than the stride; or a slow tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(f"question answering needs a fast tokenizer, which {type(tokenizer).__name__} isn't")
    asked = len(tokenizer(question, add_special_tokens=False)["input_ids"])
    room = limit - asked - tokenizer.num_special_tokens_to_add(pair=True)
    if room < 1:
        raise UsageError(f"the question takes {asked} of a window's {limit} tokens, so no context fits; shorten it")
    if stride is not None and stride >= room:
        raise UsageError(
            f"doc_stride={stride}: a window has room for {room} tokens of context beside the question, so expected "
            "less than that"
        )
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=limit,
        stride=min(STRIDE, room // 2) if stride is None else stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded]
    return [
        Window(
            {name: encoded[name][index] for name in names},
            _spans(encoded, index),
            tuple(encoded.word_ids(index)),
            _null_token(encoded["input_ids"][index], tokenizer),
        )
        for index in range(len(encoded["input_ids"]))
    ]


def _spans(encoded: Any, index: int) -> tuple[tuple[int, int] | None, ...]:
    pairs = zip(encoded["offset_mapping"][index], encoded.sequence_ids(index), strict=True)
    return tuple((int(span[0]), int(span[1])) if side == 1 else None for span, side in pairs)


def _null_token(ids: Sequence[int], tokenizer: Any) -> int:
    for token in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if token is not None and token in ids:
            return ids.index(token)
    return 0


def _probabilities(window: Window, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    open_to = torch.tensor(
        [span is not None or index == window.null for index, span in enumerate(window.spans)], device="cpu"
    )
    starts, ends = logits.masked_fill(~open_to.unsqueeze(1), float("-inf")).softmax(dim=0).unbind(dim=1)
    return starts, ends


def _best_first(
    starts: torch.Tensor, ends: torch.Tensor, longest: int, inside: torch.Tensor
) -> Iterator[tuple[int, int, float]]:
    """Spans of at most ``longest`` tokens, (first token, last token, score), the best one first."""
    longest = min(longest, len(ends))
    scores = starts.unsqueeze(1) * torch.nn.functional.pad(ends, (0, longest - 1)).unfold(0, longest, 1)
    within = inside.unsqueeze(1) & torch.nn.functional.pad(inside, (0, longest - 1)).unfold(0, longest, 1)
    scores = scores.masked_fill(~within, -1.0).flatten()
    for place in scores.argsort(descending=True, stable=True).tolist():
        if scores[place] < 0:
            return
        first, length = divmod(place, longest)
        yield first, first + length, float(scores[place])


def _characters(window: Window, first: int, last: int, whole_words: bool) -> tuple[int, int]:
    """The characters of the context from token ``first`` to ``last``, out to the ends of their words where asked."""
    begin, end = window.spans[first], window.spans[last]
    assert begin is not None
    assert end is not None
    if not whole_words:
        return begin[0], end[1]
    places = list(zip(window.spans, window.words, strict=True))
    starts = [span[0] for span, word in places if span and word is not None and word == window.words[first]]
    ends = [span[1] for span, word in places if span and word is not None and word == window.words[last]]
    return min(starts, default=begin[0]), max(ends, default=end[1])


def _answer(context: str, span: tuple[int, int], score: float) -> dict[str, Any]:
    """An answer without the blanks that some tokenizers count to a word."""
    start, end = span
    text = context[start:end]
    start += len(text) - len(text.lstrip())
    answer = text.strip()
    return {"score": score, "start": start, "end": start + len(answer), "answer": answer}
