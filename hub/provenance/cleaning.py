"""A checkpoint's files as they go into a catalogue: without secrets and without the folders of whoever trained it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorary.hub.checkpoint import (
    CONFIG_NAME,
    ORIGIN_NAME,
    RECIPE_NAME,
    REPORT_DATA,
    Checkpoint,
    read_again,
)
from lorary.hub.errors import CheckpointError
from lorary.hub.jsontext import load_json
from lorary.hub.manifest import MANIFEST_NAME, Manifest
from lorary.hub.provenance.private import bare_name, is_absolute, public_base, redact, redact_text

# Fields of these files that name a model or a file; their other texts are what the adapter is made of.
_PATHS = (
    "name_or_path",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "special_tokens_map_file",
    "chat_template_file",
)

_LARGEST = 100_000_000  # bytes of a text, as on the way in from a remote
_AS_IS = "surrogateescape"  # bytes that aren't UTF-8 come out as they went in


@contextmanager
def cleaned(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """The checkpoint without secrets and home folders in its texts; the same one where it holds none.

    What has to be changed is written anew, for as long as the block lasts; the files given are left as they are.
    Weights, vocabularies, prompts and labels aren't touched.

    Raises:
        CheckpointError: a text file that can't be read, or is of an absurd size.
    """
    changed = {name: text for name in checkpoint.files if (text := _clean_text(checkpoint, name)) is not None}
    if not changed:
        yield checkpoint
        return
    with tempfile.TemporaryDirectory(prefix="lorary-") as folder:
        files = {name: Path(folder) / name for name in changed}
        for name, path in files.items():
            path.write_bytes(changed[name].encode("utf-8", _AS_IS))
        yield read_again(checkpoint, files)


def clean_manifest(manifest: Manifest) -> Manifest:
    """A manifest without secrets and folders. Its semantic part, of which the digest is taken, stays as it is."""
    base = replace(manifest.base, id=public_base(manifest.base.id))
    return replace(manifest, base=base, provenance=redact(manifest.provenance))


def clean_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """An ``adapter_config.json`` without secrets and folders."""
    clean: dict[str, Any] = redact(config)
    base = config.get("base_model_name_or_path")
    return {**clean, "base_model_name_or_path": public_base(base)} if isinstance(base, str) and base else clean


def _clean_text(checkpoint: Checkpoint, name: str) -> str | None:
    """The new text of a file, None where it stays as it is."""
    if name == MANIFEST_NAME and checkpoint.manifest is not None:
        clean = clean_manifest(checkpoint.manifest)
        return None if clean == checkpoint.manifest else clean.to_json()
    if name == CONFIG_NAME:
        config = clean_config(checkpoint.config)
        return None if config == checkpoint.config else json.dumps(config, indent=2)
    change = _TEXTS.get(name)
    if change is None:
        return None
    try:
        if (size := checkpoint.files[name].stat().st_size) > _LARGEST:
            raise CheckpointError(
                f"{checkpoint.source}: {name}: {size:,} bytes is too large to be searched for secrets; expected at "
                f"most {_LARGEST:,}, shorten it or take it out of the folder"
            )
        # Not read_text: a line's ending is part of the content.
        text = checkpoint.files[name].read_bytes().decode("utf-8", _AS_IS)
    except OSError as error:
        raise CheckpointError(f"{checkpoint.source}: {name} can't be read ({error.strerror or error})") from error
    new = change(_without_base(checkpoint, text))
    return None if new == text else new


def _without_base(checkpoint: Checkpoint, text: str) -> str:
    """A text in which a base's folder stands under its public name, as in the config: trainers' cards name it too."""
    named = {checkpoint.manifest.base.id if checkpoint.manifest else None}
    named.add(checkpoint.config.get("base_model_name_or_path"))
    for base in named:
        if isinstance(base, str) and len(base) > 1 and is_absolute(base):
            text = text.replace(base, public_base(base))
    return text


def _clean_json(text: str) -> str:
    values = _json(text)
    if values is None:
        return redact_text(text)
    clean = redact(values)
    return text if clean == values else json.dumps(clean, ensure_ascii=False)


def _clean_tokenizer(text: str) -> str:
    values = _json(text)
    if not isinstance(values, dict):
        return redact_text(text)
    # A chat template may hold whatever it likes; it is what the adapter was trained with.
    clean = {
        key: bare_name(value) if key in _PATHS and isinstance(value, str)
        else value if key == "chat_template"
        else redact(value)
        for key, value in values.items()
    }  # fmt: skip
    if isinstance(values.get("name_or_path"), str):
        clean["name_or_path"] = public_base(values["name_or_path"])
    return text if clean == values else json.dumps(clean, indent=2, ensure_ascii=False)


def _json(text: str) -> Any:
    try:
        return load_json(text)
    except ValueError:
        return None  # whoever reads the file says so


_TEXTS: Mapping[str, Callable[[str], str]] = {
    "README.md": redact_text,
    RECIPE_NAME: redact_text,
    "report.html": redact_text,
    REPORT_DATA: _clean_json,
    ORIGIN_NAME: _clean_json,
    "tokenizer_config.json": _clean_tokenizer,
    "special_tokens_map.json": _clean_tokenizer,
}
