"""The tokenizers that adapters bring with them: added tokens and chat templates are each row's own."""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from lorary.adapters.base.identity import tokenizer_hash
from lorary.adapters.base.loading import quietly
from lorary.adapters.base.tokenizer import read_tokenizer, remembering_no_texts
from lorary.hub.base_files import resolve_base
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import CheckpointError, first_line

_TEMPLATE = "chat_template.jinja"
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", _TEMPLATE)
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")

_SAVE_ROWS = "save_pretrained(save_embedding_layers=True)"
_Key = tuple[tuple[str, str], ...]  # files' names with the sha256 of what they hold


@dataclass(frozen=True, eq=False)
class OwnTokenizer:
    """An adapter's tokenizer, where it is another than the backbone's.

    ``stop_tokens`` end what it writes besides the base's own: its end of text, where that is another than the base's.
    """

    tokenizer: Any
    stop_tokens: tuple[int, ...]


class Tokenizers:
    """Reads the tokenizers beside adapters.

    Adapters whose files are the same share one, as long as one of them has it. ``base`` is the backbone's (None: it has
    none), ``rows`` is how many tokens the backbone's embedding has.
    """

    def __init__(self, base: Any, rows: int) -> None:
        self._base = base
        self._rows = rows
        self._base_says = None if base is None else _says(base)
        self._read: WeakValueDictionary[_Key, OwnTokenizer] = WeakValueDictionary()
        self._as_base: set[_Key] = set()
        self._lock = threading.Lock()

    def of(self, checkpoint: Checkpoint, rows: int) -> OwnTokenizer | None:
        """The tokenizer among a checkpoint's files, None where there is none or it is as the backbone's.

        Args:
            checkpoint: the adapter's.
            rows: how many tokens the embedding has that will serve it.

        Raises:
            CheckpointError: the files can't be read as a tokenizer, or the one that will serve, its own or the
                backbone's, has tokens that the embedding hasn't.
        """
        files = tokenizer_files(checkpoint)
        added = checkpoint.manifest.added_tokens if checkpoint.manifest else None
        if added and not files.keys() & set(_VOCABULARIES):
            raise CheckpointError(
                f"{checkpoint.source}: was trained with {len(added)} new tokens, and the tokenizer that has them isn't "
                "beside it; copy all of its files"
            )
        own = self._own(files, checkpoint.source) if files else None
        serving = own.tokenizer if own is not None else self._base
        if added:
            _demand_tokens(serving, added, checkpoint.source)
        if serving is not None:
            self._demand_rows(serving, rows, checkpoint.source)
        return own

    def _demand_rows(self, serving: Any, rows: int, source: str) -> None:
        # A base whose own tokenizer has tokens beyond its embedding gets along without them.
        spared = len(self._base) if self._base is not None and rows == self._rows else 0
        if len(serving) <= max(rows, spared):
            return
        whose = "the backbone's tokenizer" if serving is self._base else "its tokenizer"
        if rows < self._rows:
            mend = "its vocabulary was cut, so put the tokenizer that it was trained with beside it"
        else:
            mend = "the rows of its new tokens weren't saved; save it again with " + _SAVE_ROWS
        raise CheckpointError(f"{source}: {whose} has {len(serving)} tokens and the embedding {rows}: {mend}")

    def _own(self, files: Mapping[str, Path], source: str) -> OwnTokenizer | None:
        with _reading(source), self._lock:
            key = tuple((name, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in files.items())
            if key in self._as_base:
                return None
            own = self._read.get(key)
            if own is None:
                own = self._make(files)
                if own is None:
                    self._as_base.add(key)
                else:
                    self._read[key] = own
            return own

    def _make(self, files: Mapping[str, Path]) -> OwnTokenizer | None:
        if files.keys() & set(_VOCABULARIES):
            tokenizer = _read(files)
        elif self._base is None:
            return None
        else:
            tokenizer = copy.deepcopy(self._base)
            tokenizer.chat_template = files[_TEMPLATE].read_text(encoding="utf-8")
        if _says(tokenizer) == self._base_says:
            return None
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = getattr(self._base, "pad_token", None) or tokenizer.unk_token or tokenizer.eos_token
        end = tokenizer.eos_token_id
        other = end is not None and end != getattr(self._base, "eos_token_id", None)
        return OwnTokenizer(tokenizer, (end,) if other else ())


def tokenizer_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """A checkpoint's tokenizer files by name, empty where they don't make one: settings alone are none."""
    files = {name: checkpoint.files[name] for name in (*_VOCABULARIES, *_SETTINGS) if name in checkpoint.files}
    return files if files.keys() & {*_VOCABULARIES, _TEMPLATE} else {}


def told_by_tokenizer(checkpoint: Checkpoint) -> tuple[Any, ...] | None:
    """What a checkpoint's tokenizer makes of texts, to be compared with that of another; None where it brings none.

    Raises:
        CheckpointError: the files can't be read as a tokenizer.
    """
    files = tokenizer_files(checkpoint)
    if not files:
        return None
    with _reading(checkpoint.source):
        if files.keys() & set(_VOCABULARIES):
            return _says(_read(files))
        return (files[_TEMPLATE].read_text(encoding="utf-8"),)


def serving_tokenizer(checkpoint: Checkpoint, base: str) -> Any:
    """The tokenizer that rows of a checkpoint are served with, from files alone: its own, else the base's.

    None where neither brings one. Of a base on the Hub config and tokenizer are downloaded, and no weights.

    Raises:
        CheckpointError: the checkpoint's files can't be read as a tokenizer.
        BaseNotFoundError: it brings none, and the base can't be found, or its tokenizer can't be read.
    """
    files = tokenizer_files(checkpoint)
    if files.keys() & set(_VOCABULARIES):
        with _reading(checkpoint.source):
            return _read(files)
    tokenizer = read_tokenizer(base, resolve_base(base, weights=False).path)
    if tokenizer is not None and files:
        with _reading(checkpoint.source):
            tokenizer.chat_template = files[_TEMPLATE].read_text(encoding="utf-8")
    return tokenizer


@contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the reader in Rust raises no class of its own
        raise CheckpointError(
            f"{source}: its tokenizer's files can't be read as one ({first_line(error)}); save the tokenizer again, "
            "or take the files out of the folder to use the base's"
        ) from error


def _demand_tokens(serving: Any, added: Sequence[str], source: str) -> None:
    vocabulary = serving.get_vocab() if serving is not None else {}
    ids = [vocabulary.get(token, -1) for token in added]
    if ids != list(range(ids[0], ids[0] + len(ids))) or ids[0] < 0:
        raise CheckpointError(
            f"{source}: its tokenizer doesn't have the {len(added)} new tokens that it was trained with, in their "
            "order; its files are others than were saved"
        )


def _read(files: Mapping[str, Path]) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # They may be objects of a store, under names that say nothing.
    with tempfile.TemporaryDirectory(prefix="lorary-tokenizer-") as folder, quietly():
        for name, path in files.items():
            shutil.copyfile(path, Path(folder) / name)
        if "tokenizer_config.json" in files:
            return remembering_no_texts(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
        return remembering_no_texts(PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / "tokenizer.json")))


def _says(tokenizer: Any) -> tuple[Any, ...]:
    """What two tokenizers have to have in common for a text to come to the same tokens, and to the same prompt."""
    vocabulary = tokenizer_hash(tokenizer) or tuple(sorted(tokenizer.get_vocab().items()))
    special = tuple(str(getattr(tokenizer, name, None)) for name in _SPECIAL)
    return vocabulary, special, tokenizer.chat_template
