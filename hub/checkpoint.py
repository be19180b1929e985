"""Reading and checking a PEFT checkpoint: its config, its tensors' names and shapes, its manifest, its digest.

Format: PEFT's ``save_pretrained`` (``adapter_config.json`` and ``adapter_model.safetensors``). Nothing here loads
weights or needs torch; nothing here runs code from the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lorary.hub.embedding import Embedding, OtherEmbeddingError, embedding_of, read_embedding
from lorary.hub.errors import CheckpointError, UnsafeFileError
from lorary.hub.jsontext import load_json
from lorary.hub.links import leads_away
from lorary.hub.manifest import MANIFEST_NAME, Manifest, Pooling, Preprocessing
from lorary.hub.manifest_reading import parse_manifest
from lorary.hub.tensorfile import TensorInfo, read_header, tensor_hashes

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
GOLDEN_NAME = "golden.safetensors"
RECIPE_NAME = "recipe.yaml"
ORIGIN_NAME = "lorary-origin.json"
"""Of an adapter without a manifest: what is known of its making, in the form of a manifest's provenance."""
REPORT_DATA = "report.json"
REPORT_FILES = (REPORT_DATA, "report.html", "curves.png", "folds.png", "mistakes.png")

KEPT_FILES = (
    CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME, GOLDEN_NAME, RECIPE_NAME, ORIGIN_NAME, "README.md", *REPORT_FILES,
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
"""The files that belong to an adapter; whatever else lies in its folder is left where it is."""

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_OF_MLX = "adapters.safetensors"
MAX_TEXT_BYTES = 5_000_000
"""Of ``adapter_config.json`` and ``lorary.json``, which take some kilobytes; parsed, it is thirty times that."""
_METHOD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,49}")
_LONGEST_BASE = 1000  # characters of its id or path
# Fields that say where or with what an adapter was made, not what it is.
_CONFIG_NOT_IDENTITY = frozenset(
    {"base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode", "runtime_config"}
)
# PEFT keeps these as sets, so their order in the file differs from run to run.
_CONFIG_SETS = frozenset(
    {
        "target_modules",
        "modules_to_save",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "target_parameters",
    }
)


@dataclass(frozen=True)
class Checkpoint:
    """One adapter's files, read and checked.

    ``files`` maps each kept file's name to where it lies: a folder's files, or objects of a store. ``catalogued_task``
    is the task that the catalogue has it under, None of what comes from none: of an adapter without a manifest the
    files themselves may leave it open.
    """

    source: str
    files: Mapping[str, Path]
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    manifest: Manifest | None
    catalogued_task: str | None = None

    @cached_property
    def digest(self) -> str:
        """The version's identity: sha256 over tensors, canonical config and the manifest's semantic part (hex)."""
        return self.digest_of(dict(tensor_hashes(self.files[WEIGHTS_NAME], self.tensors)))

    def digest_of(self, hashes: Mapping[str, str]) -> str:
        """The same for one who has the tensors' bytes at hand: ``hashes`` is each tensor's sha256 (hex)."""
        identity = {
            "config": canonical_config(self.config),
            "manifest": self.manifest.semantic() if self.manifest else None,
            "tensors": {name: [info.dtype, list(info.shape), hashes[name]] for name, info in self.tensors.items()},
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(b"lorary-digest-1\n" + text.encode()).hexdigest()

    @cached_property
    def told(self) -> Mapping[str, Any]:
        """What the files tell of how the adapter was made: the manifest's provenance, else :data:`ORIGIN_NAME`'s."""
        if self.manifest is not None:
            return self.manifest.provenance
        if ORIGIN_NAME not in self.files:
            return {}
        try:
            found = load_json(_read_text(self.files[ORIGIN_NAME], f"{self.source}/{ORIGIN_NAME}"))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def embedding(self) -> Embedding | None:
        """How texts become embeddings, where sentence-transformers' files or :data:`ORIGIN_NAME` say it.

        None of an adapter with a manifest, which says it itself.
        """
        if self.manifest is not None:
            return None
        if ORIGIN_NAME in self.files:
            return embedding_of(self.told.get("embedding"))
        try:
            return read_embedding(self.files[CONFIG_NAME].parent)
        except OtherEmbeddingError:
            return None

    @property
    def pooling(self) -> Pooling | None:
        """How hidden states become an embedding; None where nothing says so."""
        if self.manifest is not None:
            return self.manifest.pooling
        return self.embedding.pooling if self.embedding else None

    @property
    def preprocessing(self) -> Preprocessing:
        """How rows become token ids."""
        if self.manifest is not None:
            return self.manifest.preprocessing
        if self.embedding is None:
            return Preprocessing()
        return Preprocessing(max_length=self.embedding.max_length, prefix=self.embedding.prefix)

    @property
    def peft_type(self) -> str:
        """PEFT's name of the method, such as ``LORA``."""
        return str(self.config["peft_type"])

    @property
    def rank(self) -> int | None:
        """The config's ``r``, where the method has one."""
        rank = self.config.get("r")
        return rank if type(rank) is int and 0 < rank < 2**31 else None

    @property
    def parameters(self) -> int:
        """How many numbers the adapter's tensors hold."""
        return sum(info.elements for info in self.tensors.values())

    @property
    def size_bytes(self) -> int:
        """The size of the weights file, which ends with its last tensor; nothing is asked of the file."""
        return max(info.end for info in self.tensors.values())


def canonical_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an ``adapter_config.json`` that says what the adapter is, in one spelling.

    Sets are sorted; fields that are off (null, false, empty) are dropped, since each PEFT version writes new ones.
    A zero is kept: ``layers_to_transform: 0`` is the first layer.
    """
    canonical: dict[str, Any] = {}
    for key, value in config.items():
        if key in _CONFIG_NOT_IDENTITY or value is None or value is False or value in ([], {}, ""):
            continue
        canonical[key] = sorted(value, key=str) if key in _CONFIG_SETS and isinstance(value, list) else value
    return canonical


def checkpoint_files(folder: Path) -> dict[str, Path]:
    """The kept files of a folder, by name.

    Raises:
        CheckpointError: no folder, or the config or the weights are missing.
        UnsafeFileError: one of the kept files is a link, or the weights are there as a pickle only.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; expected one that holds {CONFIG_NAME} and {WEIGHTS_NAME}")
    files: dict[str, Path] = {}
    for name in KEPT_FILES:
        path = folder / name
        if target := leads_away(path, folder):
            raise UnsafeFileError(f"{path}: is a link to {target}; copy the file itself into the folder")
        if path.is_file():
            files[name] = path
    _demand(files, folder)
    return files


def _demand(files: Mapping[str, Path], folder: Path) -> None:
    if CONFIG_NAME not in files:
        # PEFT puts every adapter but `default` into a folder of its own name.
        below = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_NAME}"))
        hint = f"; there are some in {', '.join(below[:5])}: name one of those folders" if below else ""
        raise CheckpointError(f"{folder}: no {CONFIG_NAME}; expected a folder written by PEFT's save_pretrained{hint}")
    if WEIGHTS_NAME not in files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise UnsafeFileError(
                f"{folder}: holds {pickles[0]} but no {WEIGHTS_NAME}; pickles can run code and are never loaded. "
                "Load it where you trust it with PEFT and save it with save_pretrained(safe_serialization=True)"
            )
        hint = f"; {_OF_MLX} is mlx-lm's, which `lorary import` converts" if (folder / _OF_MLX).exists() else ""
        raise CheckpointError(f"{folder}: no {WEIGHTS_NAME}; expected a folder written by PEFT's save_pretrained{hint}")


def read_checkpoint(source: str | Path | Mapping[str, Path], shown: str | None = None) -> Checkpoint:
    """Read and check a checkpoint from a folder, or from its files by name; ``shown`` is what errors call it.

    Raises:
        CheckpointError: a file is missing, truncated, or not what its name says.
        UnsafeFileError: see :func:`checkpoint_files`.
    """
    if isinstance(source, Mapping):
        files, shown = dict(source), shown or "checkpoint"
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if name not in files:
                raise CheckpointError(f"{shown}: no {name} among the files given")
    else:
        folder = Path(source).expanduser()
        files, shown = checkpoint_files(folder), shown or str(folder)
    config = _read_config(files[CONFIG_NAME], shown)
    tensors = read_header(files[WEIGHTS_NAME], f"{shown}/{WEIGHTS_NAME}")
    if not tensors:
        raise CheckpointError(f"{shown}: {WEIGHTS_NAME} holds no tensors; train or save the adapter again")
    manifest = None
    if MANIFEST_NAME in files:
        place = f"{shown}/{MANIFEST_NAME}"
        manifest = parse_manifest(_read_text(files[MANIFEST_NAME], place), place)
    return Checkpoint(shown, files, config, tensors, manifest)


def read_again(checkpoint: Checkpoint, changed: Mapping[str, Path] | None = None) -> Checkpoint:
    """The same checkpoint from its files as they are now, with those of ``changed`` in their place.

    Raises as :func:`read_checkpoint`.
    """
    fresh = read_checkpoint({**checkpoint.files, **(changed or {})}, shown=checkpoint.source)
    return replace(fresh, catalogued_task=checkpoint.catalogued_task)


def _read_config(path: Path, shown: str) -> dict[str, Any]:
    place = f"{shown}/{CONFIG_NAME}"
    try:
        config = load_json(_read_text(path, place))
    except ValueError as error:
        raise CheckpointError(f"{place}: not valid JSON ({error}); save the adapter again") from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise CheckpointError(f"{place}: expected an object with a 'peft_type', as PEFT writes it")
    if not _METHOD.fullmatch(config["peft_type"]):
        raise CheckpointError(f"{place}: peft_type {config['peft_type'][:50]!r} is no method's name, such as LORA")
    base = config.get("base_model_name_or_path")
    if base is not None and (not isinstance(base, str) or len(base) > _LONGEST_BASE):
        raise CheckpointError(f"{place}: base_model_name_or_path is {base!r:.50}, expected a model's id or its folder")
    return config


def _read_text(path: Path, shown: str) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise CheckpointError(
                f"{shown}: {size:,} bytes is too large; expected some kilobytes, at most {MAX_TEXT_BYTES:,}"
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{shown}: not UTF-8 text ({error})") from error
    except OSError as error:
        raise CheckpointError(f"{shown}: can't be read ({error.strerror or error})") from error
