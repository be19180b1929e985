"""Prompts and chats as token ids, exactly as ``generate`` will put them, with the positions that are learned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorary.adapters.text.templates import chat_text, demand_variables, unknown_variables
from lorary.adapters.text.tools import as_text
from lorary.hub.errors import DataError, TrainingError, UsageError
from lorary.training.data import Example
from lorary.training.data.files.source import report
from lorary.training.data.shapes.messages import is_learned
from lorary.training.fitting.losses import IGNORED
from lorary.training.recipe.sections import PromptSettings

Message = Mapping[str, Any]
Learn = Literal["replies", "last", "all"]

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message that templates may write before its content."""


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


def asked_of(values: Mapping[str, Any]) -> int:
    """How many messages of a row are its prompt, where that stands apart from the reply."""
    prompt = values.get("prompt")
    return len(prompt) if isinstance(prompt, list) else 0


def told_of(values: Mapping[str, Any], prompt: PromptSettings) -> tuple[Sequence[Any], dict[str, Any]]:
    """What a row's template is told beside its chat: tools, and variables by name, the row's own over the recipe's."""
    own = values.get("chat_template_kwargs") or {}
    return values.get("tools") or (), {**(prompt.chat_template_kwargs or {}), **own}


def as_told(message: Message) -> str:
    """A message as people read it: its content, and a line for each call."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or () if isinstance(call, Mapping)]
    lines = [f"{call.get('name')}({as_text(call.get('arguments', {}))})" for call in calls]
    return "\n".join([*([str(message["content"])] if message["content"] or not lines else []), *lines])


def check_chats(tokenizer: Any, prompt: PromptSettings) -> None:
    """Can the tokenizer put chats?

    Raises:
        TrainingError: it lacks a template, or one that knows what it is told, or can't say where its tokens come from.
    """
    check_template(tokenizer, prompt)
    if not getattr(tokenizer, "is_fast", False):
        raise TrainingError("chats need a fast tokenizer (a tokenizer.json beside the base)")


def check_template(tokenizer: Any, prompt: PromptSettings) -> None:
    """Is there a chat template, and does it know what it is told?

    Raises:
        TrainingError: there isn't, or it doesn't.
    """
    if not (prompt.chat_template or tokenizer.chat_template):
        raise TrainingError(
            "the base's tokenizer has no chat template; give one with prompt.chat_template, "
            "or use rows of prompt and completion with prompt.format: instruction"
        )
    try:
        demand_variables(tokenizer, prompt.chat_template, prompt.chat_template_kwargs or {})
    except UsageError as error:
        raise TrainingError(f"prompt.{error}") from error


def check_told(examples: Sequence[Example], tokenizer: Any, prompt: PromptSettings, column: str) -> None:
    """Does the chat template know what the rows tell it?

    Raises:
        DataError: it doesn't, each name by the file and number of its row.
    """
    told = [(example.place, name) for example in examples for name in example.values.get("chat_template_kwargs") or ()]
    unknown = unknown_variables(tokenizer, prompt.chat_template, {name for _, name in told})
    if unknown:
        raise report("rows", [f"{place}, {column}: {unknown[name]}" for place, name in told if name in unknown])


UNWRITTEN, UNTOLD = 1, 2
"""Reasoning and tool calls; tools that could be called. They add up."""


@dataclass(frozen=True)
class Chat:
    """A row's token ids, with labels on what is learned.

    ``left``: which messages were to be learned and aren't; ``lost``: what the template writes none of, of
    :data:`UNWRITTEN` and :data:`UNTOLD`.
    """

    ids: list[int]
    labels: list[int]
    left: tuple[int, ...] = ()
    lost: int = 0


def encode_chat(
    messages: Sequence[Message],
    tokenizer: Any,
    prompt: PromptSettings,
    *,
    learn: Learn,
    place: str,
    asked: int = 0,
    tools: Sequence[Any] = (),
    kwargs: Mapping[str, Any],
) -> Chat:
    """The whole chat through its template.

    Args:
        learn: the assistant's turns with what ends them (``replies``), the ``last`` of them, or ``all`` there is.
        place: names the row in errors.
        asked: how many of the first messages are a prompt, of which no turn is learned.
        tools: what the model may call.
        kwargs: what else the template is told.

    Raises:
        DataError: the template refuses the chat.
    """
    turns = [index for index, message in enumerate(messages) if index >= asked and is_learned(message)]
    turns = [] if learn == "all" else turns[-1:] if learn == "last" else turns
    ends = {*tokenizer.all_special_tokens, *(token.content for token in tokenizer.added_tokens_decoder.values())} - {""}

    def render(count: int, ask: bool, told: Sequence[Any] = tools) -> str:
        return chat_text(tokenizer, messages[:count], prompt.chat_template, told, kwargs, add_generation_prompt=ask)

    try:
        whole = render(len(messages), ask=False)
        spans = {-1: (0, len(whole))} if learn == "all" else dict(_spans(turns, whole, render, ends))
        untold = bool(tools) and render(len(messages), ask=False, told=()) == whole
    except Exception as error:  # a template is a program of its author's; it may raise anything
        raise DataError("rows", [f"{place}: the chat template refuses it ({error})"]) from error
    # The template writes the special tokens itself; the tokenizer must not put a second beginning before them.
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(encoded["input_ids"])
    labels = [
        token if any(start < end and first <= start < last for first, last in spans.values()) else IGNORED
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    left = () if learn == "all" else tuple(index for index in turns if index not in spans)
    unwritten = any(_none_of(texts, whole) for texts in (_reasoning(messages), _calls(messages)))
    return Chat(ids, labels, left, UNWRITTEN * unwritten + UNTOLD * untold)


def _none_of(texts: Sequence[str], whole: str) -> bool:
    return bool(texts) and not any(text in whole for text in texts)


def _reasoning(messages: Sequence[Message]) -> list[str]:
    found = (message.get(key) for message in messages for key in REASONING)
    return [text.strip() for text in found if isinstance(text, str) and text.strip()]


def _calls(messages: Sequence[Message]) -> list[str]:
    calls = (call for message in messages for call in message.get("tool_calls") or ())
    names = (call.get("function", call).get("name") for call in calls if isinstance(call, Mapping))
    return [name for name in names if isinstance(name, str) and name]


def alone(messages: Sequence[Message], index: int) -> list[Message]:
    """A chat that ends with one of the assistant's turns, of which that turn alone is learned."""
    before = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in messages[:index]]
    return [*before, messages[index]]


def _spans(
    turns: Sequence[int], whole: str, render: Callable[[int, bool], str], ends: Collection[str]
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Where turns of the assistant stand in the rendered chat, in characters, by their index.

    Templates that rewrite earlier turns (dropping their reasoning, say) render a beginning of the chat differently
    than the chat; of such a chat only the turns that stand in the whole as in the beginning are learned, and only those
    that begin as a generation does.
    """
    for index in turns:
        before, after = render(index, True), render(index + 1, False)
        if after.startswith(before) and (end := _end(after, whole, ends)) > len(before):
            yield index, (len(before), end)


def _end(after: str, whole: str, ends: Collection[str]) -> int:
    """Where a chat's beginning ends in the whole; 0 where it doesn't stand there.

    What a template puts behind the last turn alone, to close the text, isn't there: the tokens in ``ends``, and blanks.
    """
    end = len(after)
    while not whole.startswith(after[:end]):
        shorter = after[:end].rstrip()
        last = max((token for token in ends if shorter.endswith(token)), key=len, default="")
        shorter = shorter if len(shorter) < end else shorter.removesuffix(last)
        if len(shorter) == end:
            return 0
        end = len(shorter)
    return end
