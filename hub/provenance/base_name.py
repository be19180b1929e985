"""What the base of a foreign adapter is called: its config may only know a folder of whoever made it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorary.hub.checkpoint import CONFIG_NAME, Checkpoint, read_again
from lorary.hub.errors import RegistryConflictError, UsageError
from lorary.hub.provenance.private import is_absolute, local_folder, public_base
from lorary.hub.registry_path import suggested
from lorary.hub.values import Version

# An id on the Hub: https://huggingface.co/docs/huggingface_hub/package_reference/utilities#huggingface_hub.utils.validate_repo_id
_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@contextmanager
def on_base(checkpoint: Checkpoint, base: str | None) -> Iterator[Checkpoint]:
    """The checkpoint with ``base`` (an id or a folder) in its config, which is no part of its digest; None: as it is.

    Of a folder only the last part of its name stays in the catalogue (:func:`public_base`): what is opened from there
    must be told where its base is.

    Raises:
        UsageError: the adapter's manifest says its base, or ``base`` is neither a model's folder nor an id.
    """
    if base is None:
        yield checkpoint
        return
    if checkpoint.manifest is not None:
        raise UsageError(
            f"{checkpoint.source} says itself that its base is {checkpoint.manifest.base.id}; leave --base out"
        )
    folder = local_folder(base)
    if folder is not None and not (folder / "config.json").is_file():
        raise UsageError(f"--base {base}: no config.json in that folder; expected a base model's")
    if folder is None and not _ID.fullmatch(base):
        raise UsageError(
            f"--base {base}: no such folder; expected a base model's, or an id on the Hub such as org/name"
        )
    name = str(folder.absolute()) if folder is not None else base
    with tempfile.TemporaryDirectory(prefix="lorary-") as place:
        path = Path(place) / CONFIG_NAME
        path.write_text(json.dumps({**checkpoint.config, "base_model_name_or_path": name}, indent=2), encoding="utf-8")
        yield read_again(checkpoint, {CONFIG_NAME: path})


def unknown_base(checkpoint: Checkpoint) -> str | None:
    """What to tell of a foreign adapter whose base is a folder, or that names none; None where it is an id."""
    if checkpoint.manifest is not None:
        return None
    base = checkpoint.config.get("base_model_name_or_path")
    if not base:
        return "it doesn't name its base; --base ORG/NAME says which it is"
    if is_absolute(base) and local_folder(base) is not None:
        return f"of its base's folder only the name is kept, {public_base(base)}; give --base where it is opened"
    if local_folder(base) is not None or _ID.fullmatch(base):
        return None
    return (
        f"its base is called {base}, a folder of whoever made it; --base ORG/NAME says which it is, here or "
        "(there a folder too) where it is opened"
    )


def demand_base(version: Version | None, checkpoint: Checkpoint, base: str | None, registry: Path) -> None:
    """A version that is there already keeps the base that it has: to be asked before anything is written.

    Args:
        version: the one of the same name and digest; None where there is none.
        checkpoint: what is to be registered, on ``base``.
        base: the base that the user gave.
        registry: the path of the one that it is in.

    Raises:
        RegistryConflictError: ``base`` is another one.
    """
    named = public_base(str(checkpoint.config.get("base_model_name_or_path")))
    if version is not None and base is not None and version.base_id != named:
        raise RegistryConflictError(
            f"{version.reference} is the same adapter, on the base {version.base_id}; to have it on {named}, "
            f"`{suggested(f'lorary rm {version.reference}', registry)}` first"
        )
