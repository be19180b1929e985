"""The arguments of transformers' ``generate``, held against what they have to be: it passes many wrong ones over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lorary.adapters.arguments import is_number, is_whole, shown
from lorary.hub.errors import UsageError

Expected = tuple[str, Callable[[Any], bool]]


def _at_least(least: int) -> Expected:
    return f"a whole number of at least {least}", lambda value: is_whole(value) and value >= least


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda value: all(callable(getattr(value, name, None)) for name in names)


def _all_callable(value: Any) -> bool:
    return callable(value) or (isinstance(value, Sequence) and all(map(callable, value)))


def _is_config(value: Any) -> bool:
    from transformers import GenerationConfig

    return isinstance(value, GenerationConfig)


_NUMBER: Expected = ("a number", is_number)
_SWITCH: Expected = ("True or False", lambda value: isinstance(value, bool))

_SETTINGS: Mapping[str, Expected] = {
    **dict.fromkeys(("max_new_tokens", "max_length", "num_beams", "num_return_sequences"), _at_least(1)),
    **dict.fromkeys(("prompt_lookup_num_tokens", "max_matching_ngram_size", "prefill_chunk_size"), _at_least(1)),
    **dict.fromkeys(("min_length", "min_new_tokens", "top_k"), _at_least(0)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), _at_least(0)),
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), _NUMBER),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty"), _NUMBER),
    **dict.fromkeys(("guidance_scale", "max_time"), _NUMBER),
    **dict.fromkeys(("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values"), _SWITCH),
    "generation_config": ("a transformers.GenerationConfig", _is_config),
    "logits_processor": ("a list of logits processors", _all_callable),
    "stopping_criteria": ("a list of stopping criteria", _all_callable),
    "prefix_allowed_tokens_fn": ("a function of a row's number and its tokens", callable),
    "watermarking_config": ("a transformers.WatermarkingConfig", _has("validate")),
    "streamer": ("an object with put and end", _has("put", "end")),
    "assistant_model": ("a model that can generate", _has("generate")),
    "custom_generate": ("a function (a repository's own code isn't run)", callable),
    "cache_implementation": ("another cache; continuous batching is Backbone.engine", lambda value: value != "paged"),
}
"""What each argument has to be where it isn't None; those that aren't here are transformers' own affair."""

_ASSISTANTS = ("prompt_lookup_num_tokens", "assistant_early_exit", "assistant_model")
STRUCTURES = ("schema", "regex")  # arguments of Backbone.generate, by which transformers is told when to stop
_TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id")
_INPUTS = ("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Hold the arguments of a call against what they have to be.

    Raises:
        UsageError: one isn't that.
    """
    for name, value in settings.items():
        if name in _INPUTS:
            raise UsageError(f"{name}: expected texts alone; with tensors, call generate on a `using` block's model")
        expected, is_right = _SETTINGS.get(name, ("", lambda value: True))
        if value is not None and not is_right(value):
            raise UsageError(f"{name}={shown(value)}: expected {expected}")
        if name in _TOKENS and value is not None:
            _demand_tokens(name, value)


def settings_of_part(settings: dict[str, Any], rows: Sequence[int], count: int) -> dict[str, Any]:
    """The arguments for some of a call's ``count`` rows, which get a pass of their own.

    A function of allowed tokens is told a row's number in the call, whatever its number in the pass.

    Raises:
        UsageError: there is a streamer, which would be told of the end after the first of several passes.
    """
    if len(rows) == count:
        return settings
    if settings.get("streamer") is not None:
        raise UsageError("streamer: these prompts take several passes; give it one prompt at a time, or use an engine")
    allowed = settings.get("prefix_allowed_tokens_fn")
    if allowed is None:
        return settings
    return settings | {"prefix_allowed_tokens_fn": lambda row, tokens: allowed(rows[row], tokens)}


def has_stop_strings(settings: Mapping[str, Any], base: Any) -> bool:
    """Does the call, its config or the base's own say texts to stop at? They are looked for with a tokenizer."""
    return setting("stop_strings", settings, base) is not None


def assistant_of(settings: Mapping[str, Any], base: Any) -> str | None:
    """The argument by which another decoder drafts the text, None where none does."""
    return next((name for name in _ASSISTANTS if setting(name, settings, base) is not None), None)


def takes_one_row(settings: Mapping[str, Any], base: Any) -> bool:
    """Does the call ask for what transformers does rightly for one row alone?

    Assisted decoding takes no more. And where no token ends a text, a row that is stopped by other means goes on until
    all rows of its batch are.
    """
    assisted = assistant_of(settings, base) is not None
    structured = any(settings.get(name) is not None for name in STRUCTURES)
    stops = structured or has_stop_strings(settings, base) or bool(settings.get("stopping_criteria"))
    return assisted or (stops and not end_tokens(settings, base))


def counts_padding(settings: Mapping[str, Any], base: Any) -> bool:
    """Does the call ask for what transformers counts, or reads, in the padding before a decoder's prompt too?"""

    def asked(name: str, *off: Any) -> bool:
        return setting(name, settings, base) not in (None, *off)

    return (
        (asked("max_length") and not asked("max_new_tokens"))
        or (asked("min_length", 0) and not asked("min_new_tokens"))
        or asked("encoder_repetition_penalty", 1)
    )


def end_tokens(settings: Mapping[str, Any], base: Any) -> list[int]:
    """The tokens that end a text, none where none does."""
    return listed_tokens(setting("eos_token_id", settings, base))


def listed_tokens(found: Any) -> list[int]:
    """The tokens of a setting that holds one, several (a tensor of them, too) or none."""
    found = found.flatten().tolist() if hasattr(found, "flatten") else found
    return [] if found is None else list(found) if isinstance(found, (list, tuple)) else [int(found)]


def setting(name: str, settings: Mapping[str, Any], base: Any) -> Any:
    """A setting by the call, else its config, else the base's own."""
    if name in settings:
        return settings[name]
    values = (getattr(config, name, None) for config in (settings.get("generation_config"), base))
    return next((value for value in values if value is not None), None)


def _demand_tokens(name: str, value: Any) -> None:
    """Refuse what is neither a token nor, for the end of a text, several; a tensor is transformers' own affair."""
    if hasattr(value, "dtype") and not is_whole(value):
        return
    several = name == "eos_token_id" and isinstance(value, (list, tuple))
    if not all(is_whole(token) for token in (value if several else [value])):
        tokens = ", or a list of them" if name == "eos_token_id" else ""
        raise UsageError(f"{name}={shown(value)}: expected the id of a token{tokens}")
