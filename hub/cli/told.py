"""What is told on the command line beside the text: tools and variables of chat templates, and a schema of answers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from lorary.hub.checkpoint import Checkpoint
from lorary.hub.cli.open_base import find_tokenizer
from lorary.hub.errors import UsageError
from lorary.hub.registry import Registry
from lorary.hub.template_kwargs import template_kwargs_problem


def read_tools(checkpoint: Checkpoint, file: Path) -> list[Any]:
    """What the model may call, from the file of ``--tools``.

    Raises:
        UsageError: the adapter isn't one of chats; the file can't be read, or holds no list of tools.
    """
    from lorary.adapters.text.tools import tools_problem

    _demand_chats(checkpoint, "--tools")
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--tools {file}: expected a readable JSON file ({error})") from error
    if problem := tools_problem(found):
        raise UsageError(f"--tools {file}: {problem}")
    return list(found)


def read_schema(file: Path) -> dict[str, Any]:
    """The JSON schema in the file of ``--schema``.

    Raises:
        UsageError: the file can't be read, or holds none.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--schema {file}: expected a readable JSON file ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f'--schema {file}: expected a JSON schema, such as {{"type": "object"}}')
    return found


def read_template(checkpoint: Checkpoint, settings: Iterable[str]) -> dict[str, Any]:
    """The template's variables by name, from the settings of ``--template``, whose values are read as ``--set``'s are.

    Raises:
        UsageError: the adapter isn't one of chats; a setting can't be read, or isn't the template's to be told.
    """
    from lorary.training.recipe.raw import read_value

    _demand_chats(checkpoint, "--template")
    told = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--template {setting!r}: expected KEY=VALUE, such as enable_thinking=false")
        try:
            told[name.strip()] = read_value(text)
        except ValueError as error:
            raise UsageError(f"--template {setting!r:.80}: {error}") from error
    if problem := template_kwargs_problem(told):
        raise UsageError(f"--template: {problem}")
    return told


def demand_known(checkpoint: Checkpoint, names: Collection[str], base: str | None, registry: Registry) -> None:
    """Does the chat template of an adapter of chats speak of these variables? Asked of files alone.

    Args:
        base: as the user names it, else None.
        registry: where bases are known from.

    Raises:
        UsageError: it doesn't, so nothing would come of telling it.
        BaseNotFoundError, CheckpointError: the tokenizer whose template it is can't be found or read.
    """
    from lorary.adapters.text.templates import unknown_variables

    prompt = checkpoint.manifest.prompt if checkpoint.manifest else None
    own = prompt.chat_template if prompt else None
    tokenizer = None if own else find_tokenizer(checkpoint, base, registry)
    if own or getattr(tokenizer, "chat_template", None):
        for problem in unknown_variables(tokenizer, own, names).values():
            raise UsageError(f"--template: {problem}")


def _demand_chats(checkpoint: Checkpoint, flag: str) -> None:
    prompt = checkpoint.manifest.prompt if checkpoint.manifest else None
    if prompt is None or prompt.format != "chat":
        raise UsageError(f"{flag} is for adapters that were trained on chats; this one wasn't, or doesn't say")
