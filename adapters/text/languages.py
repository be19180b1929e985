"""The languages of multilingual bases (mBART, NLLB, M2M100): their tokenizers mark a text with its language's code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lorary.hub.errors import UsageError


def has_languages(tokenizer: Any) -> bool:
    """Does the tokenizer mark each text with its language?"""
    return hasattr(type(tokenizer), "src_lang")


@contextmanager
def speaking(tokenizer: Any, source: str | None, target: str | None) -> Iterator[None]:
    """Within the block, texts are in ``source`` and targets (``text_target``) in ``target``; nothing for None.

    The tokenizer keeps its languages as state, so whoever shares it holds the lock of its users.
    """
    if source is None:
        yield
        return
    before = tokenizer.src_lang, tokenizer.tgt_lang
    tokenizer.tgt_lang = target or source
    tokenizer.src_lang = source
    try:
        yield
    finally:
        tokenizer.tgt_lang = before[1]
        tokenizer.src_lang = before[0]


def target_settings(tokenizer: Any, source: str | None, target: str | None) -> dict[str, int]:
    """The arguments of ``generate`` that make a base write in ``target``; none without languages.

    Most bases are trained on targets that begin with the code (it is forced as the first token), mBART's first
    generation on such that end with it (it is what the decoder starts from).

    Raises:
        UsageError: the tokenizer doesn't know the language.
    """
    if source is None or target is None:
        return {}
    code = language_id(tokenizer, target)
    with speaking(tokenizer, source, target):
        first, *_ = tokenizer(text_target="a")["input_ids"]
    return {"forced_bos_token_id" if first == code else "decoder_start_token_id": code}


def language_id(tokenizer: Any, language: str) -> int:
    """The token of a language's code.

    Raises:
        UsageError: the tokenizer doesn't know it.
    """
    if hasattr(tokenizer, "get_lang_id"):  # M2M100's, whose tokens are called otherwise than its codes
        known = tokenizer.lang_code_to_token
        found = tokenizer.get_lang_id(language) if language in known else None
    else:
        known = [str(token) for token in tokenizer.all_special_tokens if "_" in str(token)]
        found = tokenizer.convert_tokens_to_ids(language) if language in known else None
    if found is None:
        codes = sorted(known)
        raise UsageError(
            f"the base's tokenizer knows no language {language!r}; it knows {', '.join(codes[:12]) or 'none'}"
            + (f" and {len(codes) - 12} more" if len(codes) > 12 else "")
        )
    return int(found)
