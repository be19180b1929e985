"""New tokens as a recipe names them: a list, or a file with one a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorary.training.recipe.methods import LORA_METHODS
from lorary.training.recipe.raw import near_file, section
from lorary.training.recipe.sections import TokenSettings

Problems = Iterator[tuple[str, str]]


def token_problems(values: Mapping[str, Any]) -> Problems:
    """What is wrong with ``tokens``, each with its dotted key."""
    settings = section(values, "tokens")
    added = settings.get("add")
    if added is None:
        for key in ("special", "end"):
            if settings.get(key) not in (None, False):
                yield (
                    f"tokens.{key}",
                    "says something of new tokens, which tokens.add names; name some, or leave it out",
                )
        return
    method = values.get("method", "lora")
    if method not in LORA_METHODS:
        yield "tokens.add", f"new tokens are trained beside LoRA and its kin ({', '.join(LORA_METHODS)}), not {method}"
    if section(values, "lora").get("init") == "eva":
        yield (
            "lora.init",
            "PEFT's eva also looks at what an embedding with new tokens is given, which are ids and have no "
            "directions; use another init",
        )
    if values.get("strategy") == "direct":
        yield "tokens.add", "strategy 'direct' trains nothing, and new tokens mean nothing untrained; leave it out"
    if values.get("start") == "stack":
        yield "tokens.add", "what is stacked has low-rank weights alone; use start: continue, or leave one of them out"
    if values.get("task") == "fill-mask":
        yield "tokens.add", "the fill-mask head is the base's own, with a row for each of its tokens; leave it out"
    yield from _tokens(added, settings.get("end"))


def _tokens(added: Any, end: Any) -> Problems:
    if isinstance(added, str):
        if not Path(added).expanduser().is_file():
            yield (
                "tokens.add",
                f"no such file {added!r}{near_file(Path(added).expanduser())}; tokens are written as a list",
            )
            return
        try:
            added = _read(added)
        except (OSError, UnicodeDecodeError) as error:
            yield "tokens.add", f"{added!r} can't be read as text: {error}"
            return
    tokens = [token for token in added if isinstance(token, str)] if isinstance(added, (list, tuple)) else []
    if not tokens:
        yield "tokens.add", "holds no token; name some, or leave it out"
    for token, count in Counter(tokens).items():
        if count > 1:
            yield "tokens.add", f"{token!r} is there {count} times; name each token once"
        if token != token.strip() or not token:
            yield "tokens.add", f"{token!r}: blanks at the ends of a token are never found in a text; leave them out"
    if end is not None and tokens and end not in tokens:
        yield "tokens.end", f"{end!r} isn't among tokens.add; name one of those, or leave it out"


def listed(settings: TokenSettings) -> TokenSettings:
    """The settings with the tokens themselves in place of the file that holds them."""
    if not isinstance(settings.add, str):
        return settings
    return settings.model_copy(update={"add": _read(settings.add)})


def _read(file: str) -> tuple[str, ...]:
    lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line.strip())
