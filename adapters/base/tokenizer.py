"""The tokenizer of a base, or of an adapter that brings its own."""

from __future__ import annotations

from typing import Any

from lorary.hub.errors import BaseNotFoundError, first_line


def read_tokenizer(base: str, folder: str) -> Any:
    """The tokenizer among a base's files in ``folder``; None where there is none: it still serves token ids.

    Raises:
        BaseNotFoundError: it is broken; ``base`` is what the base is called.
    """
    from transformers import AutoTokenizer

    try:
        return remembering_no_texts(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError):
        return None
    except Exception as error:  # the reader in Rust raises no class of its own, and transformers whatever it met
        raise BaseNotFoundError(
            f"base {base!r}: its tokenizer's files can't be read as one ({first_line(error)}); save the tokenizer again"
        ) from error


def remembering_no_texts(tokenizer: Any) -> Any:
    """The tokenizer, which doesn't keep the tokens of whole texts.

    The ``tokenizers`` library keeps those of each word that it met, up to 10,000 in each thread. Where nothing parts a
    text into words (Llama 2's and Mistral's tokenizers), a whole text is one, which hardly comes again: a service's
    threads would fill 20 MB each.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.pre_tokenizer is None:
        resize = getattr(backend.model, "_resize_cache", None)
        if resize is not None:
            resize(0)
    return tokenizer
