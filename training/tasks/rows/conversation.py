"""Prompts and chats as token ids, exactly as ``generate`` will put them, with the positions that are learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from lorary.hub.errors import DataError, TrainingError
from lorary.training.fitting.losses import IGNORED

Message = Mapping[str, Any]
Learn = Literal["replies", "last", "all"]


def asked(values: Mapping[str, Any]) -> str:
    """A row's prompt, with what it is about (Alpaca's ``input``) in a line below."""
    prompt, about = values["prompt"], (values.get("input") or "").strip()
    return f"{prompt}\n{about}" if about else str(prompt)


def messages_of(values: Mapping[str, Any]) -> list[Message]:
    """A row as a chat: its messages, or its prompt (the user's, or messages of its own) and what answers it."""
    if "messages" in values:
        return list(values["messages"])
    prompt, reply = values["prompt"], values["completion"]
    before = list(prompt) if isinstance(prompt, list) else [{"role": "user", "content": asked(values)}]
    return [*before, *(reply if isinstance(reply, list) else [{"role": "assistant", "content": reply}])]


def check_chats(tokenizer: Any, chat_template: str | None) -> None:
    """Can the tokenizer put chats?

    Raises:
        TrainingError: it lacks a template, or can't say where its tokens come from.
    """
    if not (chat_template or tokenizer.chat_template):
        raise TrainingError(
            "the base's tokenizer has no chat template; give one with prompt.chat_template, "
            "or use rows of prompt and completion with prompt.format: instruction"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise TrainingError("chats need a fast tokenizer (a tokenizer.json beside the base)")


def encode_chat(
    messages: Sequence[Message], tokenizer: Any, chat_template: str | None, *, learn: Learn, place: str
) -> tuple[list[int], list[int]]:
    """The whole chat through its template: ids, and labels on what is learned.

    Args:
        learn: the assistant's turns with what ends them (``replies``), the ``last`` of them, or ``all`` there is.
        place: names the row in errors.

    Raises:
        DataError: the template refuses the chat.
    """

    def render(count: int, ask: bool) -> str:
        text = tokenizer.apply_chat_template(
            list(messages[:count]), tokenize=False, add_generation_prompt=ask, chat_template=chat_template
        )
        return str(text)

    try:
        whole = render(len(messages), ask=False)
        spans = [(0, len(whole))] if learn == "all" else list(_assistant_spans(messages, whole, render))
    except Exception as error:  # a template is a program of its author's; it may raise anything
        raise DataError("rows", [f"{place}: the chat template refuses it ({error})"]) from error
    if learn == "last":
        spans = spans[-1:]
    # The template writes the special tokens itself; the tokenizer must not put a second beginning before them.
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(encoded["input_ids"])
    labels = [
        token if any(start < end and first <= start < last for first, last in spans) else IGNORED
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return ids, labels


def _assistant_spans(
    messages: Sequence[Message], whole: str, render: Callable[[int, bool], str]
) -> Iterator[tuple[int, int]]:
    """Where the assistant's turns stand in the rendered chat, in characters.

    Templates that rewrite earlier turns (dropping their reasoning, say) render a beginning of the chat differently
    than the chat; of such a chat only the turns that stand in the whole as in the beginning are learned.
    """
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = render(index, True), render(index + 1, False)
            if after.startswith(before) and whole.startswith(after):
                yield len(before), len(after)
