"""How an adapter that sentence-transformers saved makes embeddings: its pooling, length and prompt, off its own files.

Format: ``SentenceTransformer.save_pretrained`` (``modules.json``, ``1_Pooling/config.json``,
``config_sentence_transformers.json``, ``sentence_bert_config.json``), of versions 2 to 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.hub.jsontext import load_json
from lorary.hub.links import leads_away
from lorary.hub.manifest import MOST_TOKENS, POOLINGS, Pooling

MODULES_NAME = "modules.json"
SETTINGS_NAME = "config_sentence_transformers.json"
EMBEDDING_FILES = frozenset({MODULES_NAME, SETTINGS_NAME, "sentence_bert_config.json", "1_Pooling/config.json"})
"""The files that are read beside the adapter's own, the pooling's where sentence-transformers mostly puts it."""

_LARGEST = 1_000_000  # bytes
_SHOWN = 100  # characters of what a file says
_LONGEST_PROMPT = 10_000  # characters
_MODES = {"lasttoken": "last"}  # the others are called the same
# Up to version 5 a field for each.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_TRANSFORMER = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}


@dataclass(frozen=True)
class Embedding:
    """How a text becomes an embedding: ``prefix`` stands before it, and it is cut to ``max_length`` tokens."""

    pooling: Pooling
    max_length: int | None = None
    prefix: str = ""

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "pooling": self.pooling.mode,
            "normalize": self.pooling.normalize,
            **({"max_length": self.max_length} if self.max_length else {}),
            **({"prefix": self.prefix} if self.prefix else {}),
        }


class OtherEmbeddingError(ValueError):
    """The files say of an embedding what isn't known here; the message says what."""


def embedding_of(told: Any) -> Embedding | None:
    """What :meth:`Embedding.told` made, which anybody may have written; None where it can't be that."""
    if not isinstance(told, Mapping):
        return None
    mode, limit, prefix = told.get("pooling"), told.get("max_length"), told.get("prefix", "")
    if mode not in POOLINGS or not isinstance(prefix, str) or len(prefix) > _LONGEST_PROMPT:
        return None
    return Embedding(Pooling(mode, told.get("normalize") is True), _length(limit), prefix)


def read_embedding(folder: Path) -> Embedding | None:
    """How the model that was saved in ``folder`` makes embeddings; None where that isn't sentence-transformers'.

    Raises:
        OtherEmbeddingError: in a way that isn't known here.
    """
    modules = _json(folder, MODULES_NAME)
    settings = _mapping(folder, SETTINGS_NAME)
    if not isinstance(modules, list) or settings.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        return None
    first, pooling, *rest = [*_modules(modules), ("", ""), ("", "")]
    if first != ("Transformer", ""):
        told = f"{first[0] or 'none'} in {first[1] or 'its folder'}"
        raise OtherEmbeddingError(f"its first module is {told:.{_SHOWN}}")
    if pooling[0] != "Pooling":
        raise OtherEmbeddingError(f"its second module is {pooling[0] or 'none':.{_SHOWN}}, no Pooling")
    after = [kind for kind, _ in rest if kind]
    if after not in ([], ["Normalize"]):
        raise OtherEmbeddingError(f"its modules go on with {', '.join(after):.{_SHOWN}}")
    prompt = _prompt(settings)
    mode = _mode(_pooling_config(folder, Path(pooling[1]).name), bool(prompt))
    return Embedding(Pooling(mode, bool(after)), _limit(folder), prompt)


def _modules(modules: list[Any]) -> Iterator[tuple[str, str]]:
    """Kinds and places, in their order."""
    for module in modules:
        if not isinstance(module, Mapping) or not all(isinstance(module.get(name), str) for name in ("type", "path")):
            raise OtherEmbeddingError(f"{MODULES_NAME} isn't what sentence-transformers writes")
        kind = module["type"].rpartition(".")[2]
        if kind != "Dropout":  # off at inference
            yield kind, module["path"]


def _pooling_config(folder: Path, name: str) -> Mapping[str, Any]:
    """What the pooling's own folder says; nothing where that is another place than beside the adapter."""
    try:
        outside = name == ".." or (folder / name).is_symlink()
    except OSError:  # no name that a folder can have
        return {}
    return {} if outside else _mapping(folder, f"{name}/config.json")


def _mode(config: Mapping[str, Any], prompted: bool) -> str:
    told = config.get("pooling_mode")
    if told is None:
        told = [mode for name, mode in _FLAGS.items() if config.get(name) is True]
    modes = told if isinstance(told, list) else [told]
    mode = _MODES.get(modes[0], modes[0]) if len(modes) == 1 and isinstance(modes[0], str) else None
    if mode not in POOLINGS:
        raise OtherEmbeddingError(f"it pools by {' and '.join(map(str, modes)) or 'nothing':.{_SHOWN}}")
    if prompted and config.get("include_prompt") is False:
        raise OtherEmbeddingError("its pooling leaves its prompt out")
    return mode


def _prompt(settings: Mapping[str, Any]) -> str:
    """What stands before a text unless the caller names another prompt."""
    prompts, name = settings.get("prompts"), settings.get("default_prompt_name")
    found = prompts.get(name, "") if isinstance(prompts, Mapping) and isinstance(name, str) else ""
    if not isinstance(found, str) or len(found) > _LONGEST_PROMPT:
        raise OtherEmbeddingError(f"its prompt {name!r:.50} is no text")
    return found


def _limit(folder: Path) -> int | None:
    """The most tokens of a text: what the model says, else what its tokenizer does."""
    config, tokenizer = _mapping(folder, "sentence_bert_config.json"), _mapping(folder, "tokenizer_config.json")
    for name, expected in _TRANSFORMER.items():
        if config.get(name, expected) != expected:
            raise OtherEmbeddingError(f"its {name} is {config[name]!r:.50}, not {expected}")
    if config.get("do_lower_case") is True and tokenizer.get("do_lower_case") is not True:
        raise OtherEmbeddingError("it lowers a text's letters, which its tokenizer doesn't")
    return _length(config.get("max_seq_length")) or _length(tokenizer.get("model_max_length"))


def _length(value: Any) -> int | None:
    return value if type(value) is int and 0 < value <= MOST_TOKENS else None


def _mapping(folder: Path, name: str) -> Mapping[str, Any]:
    found = _json(folder, name)
    return found if isinstance(found, Mapping) else {}


def _json(folder: Path, name: str) -> Any:
    """What a file holds; None where it isn't there, is a link out of the folder, or holds no JSON."""
    path = folder / name
    try:
        if leads_away(path, folder) or not path.is_file() or path.stat().st_size > _LARGEST:
            return None
        return load_json(path.read_bytes())
    except (OSError, ValueError):
        return None
