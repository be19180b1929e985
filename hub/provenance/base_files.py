"""The files of a base model, by which anybody can tell whether theirs are the same."""

from __future__ import annotations

import re
from pathlib import Path

from lorary.hub.files.store import hash_file

_SHA256 = re.compile(r"[0-9a-f]{64}")
# What a model and its tokenizer are read from, whichever format its weights have.
_READ = re.compile(
    r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
    r"|(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|vocab\.txt|merges\.txt|[\w.-]+\.model|chat_template\.(json|jinja)"
)


def base_files(folder: Path) -> dict[str, str]:
    """The sha256 (hex) of each file that a base model in ``folder`` is read from.

    Files that can't be read are left out. The Hugging Face cache names large files by their sha256 already; others are
    read whole, about a second for a GB.
    """
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not _READ.fullmatch(path.name):
            continue
        try:
            blob = path.resolve(strict=True)
            cached = path.is_symlink() and blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name)
            found[path.name] = blob.name if cached else hash_file(path).sha256
        except OSError:
            continue
    return found
