"""Handing an adapter on outside a catalogue: a plain PEFT folder, an archive of it, or the command that serves it."""

from __future__ import annotations

import gzip
import io
import os
import re
import secrets
import shlex
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorary.hub.card import make_card
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import CheckpointError, OutputError, UnsupportedAdapterError
from lorary.hub.files.folders import new_folder
from lorary.hub.files.store import sync_folder
from lorary.hub.jsontext import load_json
from lorary.hub.keeping.verification import demand_registered
from lorary.hub.provenance.private import local_folder
from lorary.hub.values import Version

CARD = "README.md"
# PEFT saves a form of some forty blanks with each adapter.
_BLANK, _BLANKS_OF_A_FORM = b"[More Information Needed]", 20
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` may be."""
_VLLM_MODULES = frozenset({"classifier", "score"})
_VLLM_LACKS = (
    "trainable_token_indices", "layer_replication", "alora_invocation_tokens", "use_bdlora", "use_qalora",
)  # fmt: skip
_VLLM_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
_VLLM_ENCODERS = frozenset({"bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert"})
"""The ``model_type`` of encoders that vLLM has classes of its own for, of which those for some tasks take LoRA."""
_ENCODER_BODY = re.compile(r"(?:base_model\.model\.)?(bert|roberta)\.encoder\.layer\.")


def export_folder(version: Version, checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a version's files into a new folder, which ``PeftModel.from_pretrained`` loads.

    The card goes with them; one that somebody has filled in is left as it is. The folder is there whole or not at all.

    Raises:
        OutputError: the folder holds something, or can't be written.
        CheckpointError: a file of the version can't be read, or isn't what was registered.
    """
    folder = folder.expanduser().absolute()
    demand_registered(version, checkpoint)
    card = _card(version, checkpoint)
    with new_folder(folder) as draft:
        for name, path in checkpoint.files.items():
            if name != CARD or card is None:
                _copy(path, draft / name)
        if card is not None:
            (draft / CARD).write_text(card, encoding="utf-8")
        for path in draft.iterdir():
            _sync(path)
        sync_folder(draft)
    sync_folder(folder.parent)
    return folder


def export_tar(version: Version, checkpoint: Checkpoint, file: Path) -> Path:
    """Write a version's files as an archive; one whose name ends with ``.gz`` or ``.tgz`` is compressed.

    The same version makes the same bytes: names in order, no times, no owners. In it is one folder, ``name-number``.

    Raises:
        OutputError: a file is there already, or it can't be written.
        CheckpointError: a file of the version can't be read, or isn't what was registered.
    """
    file = file.expanduser().absolute()
    if file.exists() or file.is_symlink():
        raise OutputError(f"{file}: is there already; name another file, or remove it first")
    demand_registered(version, checkpoint)
    card = _card(version, checkpoint)
    contents: dict[str, Path | bytes] = dict(checkpoint.files)
    if card is not None:
        contents[CARD] = card.encode()
    with _new_file(file) as draft, draft.open("wb") as plain:
        if file.name.endswith((".gz", ".tgz")):
            with gzip.GzipFile(filename="", mode="wb", fileobj=plain, mtime=0) as packed:
                _write_tar(packed, f"{version.name}-{version.number}", contents)
        else:
            _write_tar(plain, f"{version.name}-{version.number}", contents)
        plain.flush()
        os.fsync(plain.fileno())
    sync_folder(file.parent)
    return file


def vllm_command(version: Version, checkpoint: Checkpoint, folder: Path, base: str | None = None) -> str:
    """The command that serves the adapter in ``folder`` with vLLM, for a POSIX shell.

    Args:
        version: the version; it is served under its name.
        checkpoint: its files.
        folder: where they are.
        base: the base model; by default the one that the version names.

    Raises:
        UnsupportedAdapterError: vLLM's LoRA loader refuses it or would get it wrong; every reason is named.
    """
    base = base or version.base_id
    problems = [*_vllm_problems(checkpoint.config), *_vllm_lacks(checkpoint, base)]
    if base is None:
        problems.append("the adapter doesn't name its base")
    if problems or base is None:
        raise UnsupportedAdapterError(f"{version.reference} can't be served by vLLM: {'; '.join(problems)}")
    rank = next(size for size in _VLLM_RANKS if size >= max(_ranks(checkpoint.config)))
    words = ["vllm", "serve", base, "--enable-lora", "--lora-modules", f"{version.name}={folder}"]
    return shlex.join([*words, "--max-lora-rank", str(rank)])


def _vllm_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """As of vLLM 0.33 (``vllm/lora/peft_helper.py``), whose LoRA loader passes over fields that it doesn't know."""
    if config.get("peft_type") != "LORA":
        yield f"its method is PEFT's {config.get('peft_type')}, vLLM serves LoRA only"
        return
    if config.get("use_dora"):
        yield "use_dora is set, vLLM has no DoRA"
    if config.get("lora_bias") or config.get("bias") not in (None, "none"):
        yield "it trained biases (bias, lora_bias), which vLLM doesn't load"
    saved = config.get("modules_to_save") or []
    names = [str(name) for name in saved] if isinstance(saved, list) else [repr(saved)]
    others = [name for name in names if name not in _VLLM_MODULES]
    if others:
        yield f"modules_to_save has {', '.join(others)}, vLLM takes classifier and score only"
    for field in _VLLM_LACKS:
        if config.get(field):
            yield f"{field} is set, which vLLM doesn't load"
    if config.get("target_parameters"):
        yield "target_parameters is set, which vLLM loads on some mixtures of experts alone"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _VLLM_STARTS:
        yield f"init_lora_weights is {start!r}, with which PEFT changes the base's weights, and vLLM doesn't"
    for rank in _ranks(config):
        if type(rank) is not int or not 0 < rank <= _VLLM_RANKS[-1]:
            yield f"its rank is {rank}, vLLM serves ranks up to {_VLLM_RANKS[-1]}"


def _ranks(config: Mapping[str, Any]) -> list[Any]:
    """The rank of what no pattern names, and those of the patterns."""
    patterns = config.get("rank_pattern") or {}
    return [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else [patterns])]


def _vllm_lacks(checkpoint: Checkpoint, base: str | None) -> Iterator[str]:
    """Encoders, and encoder-decoders: the command is one that serves a language model."""
    if checkpoint.config.get("task_type") == "SEQ_2_SEQ_LM":
        yield "its base is an encoder with a decoder, and vLLM itself serves no language models of that kind"
        return
    found = next((match[1] for name in checkpoint.tensors if (match := _ENCODER_BODY.match(name))), None)
    kind = found or _model_type(base)
    if kind in _VLLM_ENCODERS:
        yield f"its base is an encoder ({kind}), for which vLLM has LoRA in some tasks or none; lorary itself serves it"


def _model_type(base: str | None) -> str | None:
    """The ``model_type`` of a base whose config is at hand: in its folder, or in the Hub's cache."""
    if base is None:
        return None
    folder = local_folder(base)
    config: Any = folder / "config.json" if folder is not None else None
    if config is None or not config.is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            config = try_to_load_from_cache(base, "config.json")
        except HFValidationError:
            return None
    try:
        found = load_json(Path(config).read_text(encoding="utf-8")) if isinstance(config, (str, Path)) else None
    except (OSError, ValueError):
        return None
    return str(found.get("model_type")) if isinstance(found, dict) else None


def _card(version: Version, checkpoint: Checkpoint) -> str | None:
    """The card to write; None where the adapter brought one that somebody filled in."""
    own = checkpoint.files.get(CARD)
    if own is not None and own.read_bytes().count(_BLANK) < _BLANKS_OF_A_FORM:
        return None
    return make_card(version, checkpoint)


def _copy(source: Path, target: Path) -> None:
    try:
        reader = source.open("rb")
    except OSError as error:
        raise CheckpointError(f"{source}: can't be read ({error.strerror or error})") from error
    # Not copyfile's permissions: the store's objects are read-only.
    with reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _new_file(file: Path) -> Iterator[Path]:
    """A file to write that becomes ``file`` when the block ends well, and leaves nothing when it doesn't."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.rename(file)
    except OSError as error:
        raise OutputError(
            f"{file}: can't be written ({error.strerror or error}); make room, or name another"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def _write_tar(target: Any, folder: str, contents: Mapping[str, Path | bytes]) -> None:
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(contents):
            content = contents[name]
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.mode = 0o644
            if isinstance(content, bytes):
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
                continue
            with content.open("rb") as reader:
                entry.size = os.fstat(reader.fileno()).st_size
                archive.addfile(entry, reader)
