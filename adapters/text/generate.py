"""Text generation with one adapter per row: prompts put the way each adapter was trained, one batch, one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lorary.adapters.text.asked import Asked, apart, ask
from lorary.adapters.text.languages import speaking, target_settings
from lorary.adapters.text.templates import demand_variables, render_chat
from lorary.hub.errors import UsageError
from lorary.hub.manifest import Generation, Preprocessing, Prompt

if TYPE_CHECKING:
    from lorary.adapters.adapter import Adapter

PromptRow = str | Sequence[Mapping[str, Any]] | Asked

_NEW_TOKENS = 20  # what generate goes on for when neither the caller nor the base says


@dataclass(frozen=True)
class Manner:
    """How an adapter's prompts are put and what it is asked to generate.

    ``cuts``: a text that is too long is cut for a decoder, too, so that what the template puts after it stays.
    ``stop_tokens`` end what it writes besides the base's own.
    """

    prompt: Prompt = field(default_factory=Prompt)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    generation: Generation | None = None
    cuts: bool = False
    stop_tokens: tuple[int, ...] = ()


def manner_of(adapter: Adapter | None) -> Manner:
    """An adapter's own manner; that of the bare backbone is to take a prompt as it stands."""
    manifest = adapter.manifest if adapter else None
    own = adapter.own_tokenizer if adapter else None
    stops = own.stop_tokens if own is not None else ()
    if manifest is None:
        return Manner(stop_tokens=stops)
    cuts = manifest.task in ("summarization", "translation")
    return Manner(manifest.prompt or Prompt(), manifest.preprocessing, manifest.generation, cuts, stops)


def generation_settings(manner: Manner, model: Any, tokenizer: Any) -> dict[str, Any]:
    """The arguments of transformers' ``generate`` that an adapter was measured with; none where it doesn't say.

    The base's own sampling, penalties and least lengths are switched off: they belong to what the base was made for.

    Raises:
        UsageError: the tokenizer doesn't know the adapter's language.
    """
    preprocessing, generation = manner.preprocessing, manner.generation
    settings: dict[str, Any] = dict(target_settings(tokenizer, preprocessing.source_lang, preprocessing.target_lang))
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if generation is None:
        stops = list(dict.fromkeys([*ends, *manner.stop_tokens]))
        return settings | ({"eos_token_id": stops} if manner.stop_tokens else {})
    # The token that ended what the adapter learned ends what it writes, whatever the base's files say. Tokenizers of
    # BERT's kind, with which some bases write, have none.
    ends = list(dict.fromkeys(end for end in (*ends, tokenizer.eos_token_id) if end is not None))
    return settings | {
        "do_sample": False,
        "max_new_tokens": generation.max_new_tokens,
        "min_length": 0,
        "num_beams": generation.num_beams,
        "length_penalty": generation.length_penalty,
        "no_repeat_ngram_size": generation.no_repeat_ngram_size,
        "repetition_penalty": 1.0,
        "eos_token_id": ends or None,
    }


def room_for(model: Any, prompt_tokens: int, settings: Mapping[str, Any]) -> int:
    """How many new tokens may follow a decoder's prompt; ``settings`` are those of ``generate``.

    ``max_new_tokens`` counts new tokens alone. Without it transformers goes by a ``max_length`` that counts the prompt
    too, the call's or the base's own, and else by the model's positions.

    Raises:
        UsageError: there is none.
    """
    base = model.generation_config
    config = settings.get("generation_config") or base
    stated = (settings.get("max_new_tokens"), config.max_new_tokens, base.max_new_tokens)
    if (most := next((new for new in stated if new is not None), None)) is not None:
        return int(most)
    called = settings.get("max_length", config.max_length if config is not base else None)
    length, whose = (called, "this call") if called is not None else (base.max_length, "the base's generation_config")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if length is not None and prompt_tokens >= length:
        raise UsageError(
            f"the prompt, with what is put around it, has {prompt_tokens} tokens, and the max_length of {whose} is "
            f"{length} with the prompt; pass max_new_tokens, which counts new tokens alone"
        )
    if length is None and positions and prompt_tokens >= positions:
        raise UsageError(f"the prompt has {prompt_tokens} tokens, and the model has {positions} positions; shorten it")
    return length - prompt_tokens if length is not None else _NEW_TOKENS


def render(prompt: PromptRow, manner: Manner, tokenizer: Any) -> tuple[str, bool]:
    """The text before the model for one prompt, and whether special tokens still have to be added to it.

    A chat template writes its own beginning-of-sequence token; adding another would double it.

    Raises:
        UsageError: a conversation was given and neither the adapter nor the tokenizer has a chat template, or the
            template refuses it, or knows nothing of what it is told; tools, or anything else that a template is told,
            for a prompt that is a text before the model.
        UnsupportedAdapterError: the template takes too long, or too much memory.
    """
    settings, prefix = manner.prompt, manner.preprocessing.prefix
    asked = apart(prompt)
    given: str | Sequence[Mapping[str, Any]] = asked.prompt
    if isinstance(given, str) and settings.format != "chat":
        for name, told in (("tools", asked.tools), ("chat_template_kwargs", asked.kwargs)):
            if told:
                raise UsageError(
                    f"{name}: only a chat template is told of them, and this prompt is a text; pass a conversation"
                )
        return prefix + (settings.template.replace("{prompt}", given) if settings.template else given), True
    messages = [{"role": "user", "content": prefix + given}] if isinstance(given, str) else [*map(dict, given)]
    if not (settings.chat_template or getattr(tokenizer, "chat_template", None)):
        raise UsageError(
            "a conversation was given, but neither the adapter nor the tokenizer has a chat template; pass a text "
            "(over HTTP to /v1/completions)"
        )
    demand_variables(tokenizer, settings.chat_template, asked.kwargs)
    kwargs = {**(settings.chat_template_kwargs or {}), **asked.kwargs}
    return render_chat(tokenizer, messages, settings.chat_template, asked.tools, kwargs), False


def prompt_of(
    row: Any, adapter: Adapter | None, roles: Sequence[str], tools: Any = None, kwargs: Any = None
) -> PromptRow:
    """The prompt of a row: a text, a conversation, or a mapping by role or by the adapter's own column names.

    ``tools`` and ``kwargs`` are what the call tells the chat template; a mapping may have tools of its own in place of
    those, and variables over them.

    Raises:
        UsageError: it is none of these.
    """
    own = None
    if isinstance(row, Mapping):
        columns = adapter.manifest.preprocessing.columns if adapter and adapter.manifest else {}
        found = [row[name] for role in roles for name in (columns.get(role, role), role) if name in row]
        if not found:
            raise UsageError(
                f"a row has no prompt: expected one of {', '.join(roles)}, found {', '.join(map(str, row))}"
            )
        tools = row.get(columns.get("tools", "tools"), tools)
        row, own = found[0], row.get(columns.get("chat_template_kwargs", "chat_template_kwargs"))
    asked: PromptRow = ask(demand_prompt(row), tools, kwargs, own)
    return asked


def demand_prompt(prompt: Any) -> PromptRow:
    """A prompt as it is, a text or a conversation.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(prompt, str) or (isinstance(prompt, Sequence) and all(isinstance(turn, Mapping) for turn in prompt)):
        return prompt
    raise UsageError(f"expected a prompt (a text, or a list of {{role, content}}), found {type(prompt).__name__}")


def prompt_tokens(
    prompt: PromptRow,
    manner: Manner,
    tokenizer: Any,
    *,
    encoder_decoder: bool,
    demand: Callable[[str], None] | None = None,
) -> tuple[list[int], int]:
    """A prompt's token ids, and how many there would be had it not been cut to the length that was trained with.

    ``demand`` may refuse the text before a decoder that isn't going to be cut, before it is read: megabytes take long.

    Raises:
        UsageError: there is nothing to go on from, or the template alone is longer than that; what ``demand`` raises.
    """
    preprocessing = manner.preprocessing
    limit = preprocessing.max_length
    with speaking(tokenizer, preprocessing.source_lang, preprocessing.target_lang):
        if encoder_decoder:
            text, add_special = render(prompt, manner, tokenizer)
            ids = list(tokenizer(text, add_special_tokens=add_special, verbose=False)["input_ids"])
            full = len(ids)
            if limit and full > limit:
                cut = tokenizer(text, add_special_tokens=add_special, truncation=True, max_length=limit)
                ids = list(cut["input_ids"])
        else:
            ids = _open_tokens(prompt, manner, tokenizer, None if manner.cuts else demand)
            full = len(ids)
            if limit and full > limit and manner.cuts and isinstance(prompt, str):
                ids = _cut_text(prompt, manner, tokenizer, limit, full)
    if not ids:
        raise UsageError("an empty prompt: this tokenizer adds no token of its own, so there is nothing to go on from")
    return ids, full


def _open_tokens(
    prompt: PromptRow, manner: Manner, tokenizer: Any, demand: Callable[[str], None] | None = None
) -> list[int]:
    """A prompt's ids for a decoder that goes on from it."""
    text, add_special = render(prompt, manner, tokenizer)
    if demand is not None:
        demand(text)
    if add_special:
        return open_tokens(text, tokenizer)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def open_tokens(text: str, tokenizer: Any) -> list[int]:
    """A text's ids for a decoder that goes on from it: beginning-of-text stands once, and end-of-text doesn't."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]  # the text begins with the token that the tokenizer puts there itself
    return ids[:-1] if eos is not None and len(ids) > 1 and ids[-1] == eos else ids


def _cut_text(source: str, manner: Manner, tokenizer: Any, limit: int, full: int) -> list[int]:
    """A prompt's ids with so much of its text, from the beginning, that ``limit`` tokens hold it and its template."""
    pieces = tokenizer(source, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    count = len(pieces["input_ids"])
    keep = count - (full - limit)
    while keep > 0:
        # Without offsets (tokenizers in Python), in proportion to the characters.
        end = pieces["offset_mapping"][keep - 1][1] if tokenizer.is_fast else len(source) * keep // count
        ids = _open_tokens(source[:end], manner, tokenizer)
        if len(ids) <= limit:
            return ids
        keep -= len(ids) - limit
    raise UsageError(
        f"the prompt's template takes {full - count} of {limit} tokens and leaves no room for a text; shorten it"
    )


def encode_prompts(
    prompts: Sequence[PromptRow],
    adapters: Sequence[Adapter | None],
    tokenizers: Sequence[Any],
    *,
    encoder_decoder: bool,
    pad: int,
) -> dict[str, torch.Tensor]:
    """Token ids and mask, [rows, tokens] each, as :func:`pad_prompts` lays them out; long ones are cut as trained.

    Each row has its adapter and its tokenizer.
    """
    rows = [
        prompt_tokens(prompt, manner_of(adapter), tokenizer, encoder_decoder=encoder_decoder)[0]
        for prompt, adapter, tokenizer in zip(prompts, adapters, tokenizers, strict=True)
    ]
    return pad_prompts(rows, encoder_decoder=encoder_decoder, pad=pad)


def pad_prompts(rows: Sequence[Sequence[int]], *, encoder_decoder: bool, pad: int) -> dict[str, torch.Tensor]:
    """Token ids and mask, [rows, tokens] each.

    A decoder's rows are padded on the left, so that each ends where it goes on; an encoder's on the right.
    """
    longest = max(map(len, rows))
    batch = torch.full((len(rows), longest), pad, device="cpu")
    mask = torch.zeros((len(rows), longest), dtype=torch.long, device="cpu")
    for index, row in enumerate(rows):
        part = slice(0, len(row)) if encoder_decoder else slice(longest - len(row), longest)
        batch[index, part] = torch.tensor(row, device="cpu")
        mask[index, part] = 1
    return {"input_ids": batch, "attention_mask": mask}


def decode_new(
    sequences: torch.Tensor,
    prompt_tokens: int,
    tokenizers: Sequence[Any],
    ends: Sequence[int] = (),
    lengths: Mapping[int, int] | None = None,
) -> list[str]:
    """The texts after the prompts, special tokens left out; a prompt's sequences follow one another.

    What follows the first of ``ends`` in a row is padding, and what is beyond its length where ``lengths`` say so. (A
    decoder beside an encoder may begin with an end, and its ``lengths`` are without the token that it begins with.)
    """
    each = len(sequences) // len(tokenizers)
    texts = []
    for place, row in enumerate(sequences[:, prompt_tokens:].tolist()):
        end = next((index for index, token in enumerate(row) if token in ends and (index or prompt_tokens)), len(row))
        if lengths and place in lengths:
            end = min(end, lengths[place] - bool(prompt_tokens))
        texts.append(str(tokenizers[place // each].decode(row[: end + 1], skip_special_tokens=True)))
    return texts
