"""What a command says at its end that one may call next: each line works as it is pasted into a shell."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from lorary.hub.cli.output import print_line
from lorary.hub.errors import BaseNotFoundError
from lorary.hub.registry_path import suggested

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lorary.hub.registry import Registry
    from lorary.hub.values import Version

_ASKED = {
    "text-generation": '"PROMPT"',
    "question-answering": '"QUESTION" --context "TEXT"',
    "feature-extraction": '"TEXT" --json',
}


def print_next(commands: Iterable[str], registry: Path) -> None:
    """Print commands about what is in this registry, one a line."""
    for number, command in enumerate(commands):
        print_line(f"{'' if number else 'Next:':<7}{suggested(command, registry)}")


def after_training(version: Version, registry: Registry) -> list[str]:
    """To look at a version, and to ask it something that it can answer."""
    asked = _asked(version, registry)
    run = [] if asked is None else [f"lorary run {version.reference} {asked}"]
    return [f"lorary show {version.reference}", *run]


def _asked(version: Version, registry: Registry) -> str | None:
    """What ``lorary run`` takes for a version after its reference; None where that can't be known."""
    if version.task == "fill-mask":
        gap = _gap(version, registry)
        return shlex.quote(f"TEXT {gap} TEXT") if gap else None
    columns = version.manifest.preprocessing.columns if version.manifest else {}
    if version.task == "text-classification" and "text_pair" in columns:
        return '"TEXT" --pair "TEXT"'
    return _ASKED.get(version.task, '"TEXT"')


def _gap(version: Version, registry: Registry) -> str | None:
    """What stands in a text for what is to be filled in; None where the base's files aren't there to say it."""
    filling = version.manifest.filling if version.manifest else None
    if filling is not None and filling.gaps == "sentinels":
        return "<extra_id_0>"
    from lorary.hub.cli.open_base import find_tokenizer

    try:
        tokenizer = find_tokenizer(registry.checkpoint(version), None, registry)
    except BaseNotFoundError:
        return None
    return getattr(tokenizer, "mask_token", None)
