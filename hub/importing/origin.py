"""What is known of the making of an adapter that has no manifest, kept with it in a file of its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorary.hub.checkpoint import ORIGIN_NAME, Checkpoint, read_again
from lorary.hub.embedding import Embedding, OtherEmbeddingError, read_embedding


@contextmanager
def with_origin(checkpoint: Checkpoint, told: Mapping[str, Any]) -> Iterator[Checkpoint]:
    """A checkpoint that also has a file with what is ``told``, which lies there within the block.

    As it is where nothing is told, or where it has a manifest or such a file.
    """
    if checkpoint.manifest is not None or ORIGIN_NAME in checkpoint.files or not told:
        yield checkpoint
        return
    with tempfile.TemporaryDirectory(prefix="lorary-") as folder:
        path = Path(folder) / ORIGIN_NAME
        path.write_text(json.dumps(dict(told), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        yield read_again(checkpoint, {ORIGIN_NAME: path})


def embedding_beside(folder: Path) -> tuple[Embedding | None, str | None]:
    """How sentence-transformers would make embeddings, and what is to be said where that isn't known here."""
    try:
        return read_embedding(folder), None
    except OtherEmbeddingError as error:
        told = f"{error}, as sentence-transformers' files say, which isn't known here: it gives every token's state"
        return None, told
