"""Matching a checkpoint's keys with a backbone's modules: every key finds its place, every place its key.

PEFT loads what matches and warns, or not, about the rest; an adapter whose keys carry another prefix then does nothing.
Here a key that is missing, unexpected or of another shape is an error that names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorary.adapters.modules import LinearShape, ModuleMap
from lorary.adapters.targets import is_target, rank_and_scale
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import KeyMismatchError, UnsupportedAdapterError
from lorary.hub.tensorfile import TensorInfo

_PEFT_PREFIX = "base_model.model."
_LORA_SUFFIXES = {".lora_A.weight": "a", ".lora_B.weight": "b", ".lora_B.bias": "bias"}
_SHOWN = 5
_NAMINGS = 8  # a file of strangers may begin its keys in ten thousand ways; a real one in two or three


@dataclass(frozen=True)
class Site:
    """One low-rank update: where it acts, the keys of its tensors, its rank and its scale."""

    path: str
    a: str
    b: str
    bias: str | None
    rank: int
    scale: float


@dataclass(frozen=True)
class KeyPlan:
    """Where each tensor of a checkpoint belongs.

    ``overrides``: linear modules of the backbone that were trained whole, path -> parameter -> key.
    ``head``: the task head's parameters, name in the task model -> key.
    ``copies``: parameters that PEFT saved beside the adapter and that must equal the backbone's, path -> key.
    """

    sites: tuple[Site, ...]
    overrides: Mapping[str, Mapping[str, str]]
    head: Mapping[str, str]
    copies: Mapping[str, str]


@dataclass
class _Found:
    """What the keys say, before it is held against the backbone."""

    lora: dict[str, dict[str, str]] = field(default_factory=dict)  # name -> a/b/bias -> key
    whole: dict[str, str] = field(default_factory=dict)  # parameter name -> key
    unexpected: list[str] = field(default_factory=list)


def plan_keys(checkpoint: Checkpoint, modules: ModuleMap, offered: Collection[str] | None = None) -> KeyPlan:
    """Find the place of every tensor of ``checkpoint`` in a backbone with these ``modules``.

    ``offered`` names the modules of the task model that the adapter was trained in, where that isn't the backbone.

    Raises:
        KeyMismatchError: keys are missing, unexpected or of another shape; the message names the first of each.
        UnsupportedAdapterError: the tensors are those of a variant that the slots don't hold.
    """
    found = _sort_keys(checkpoint)
    naming = _Naming.guess([*found.lora, *(name.rpartition(".")[0] for name in found.whole)], modules)
    problems = _Problems(checkpoint.source)
    problems.unexpected.extend(found.unexpected)
    sites, located = _plan_sites(checkpoint, found, naming, modules, problems)
    overrides, head, copies = _plan_whole(checkpoint, found, naming, modules, problems)
    for path in _used(modules, naming, offered):
        name = naming.to_checkpoint(path)
        if path not in located and is_target(checkpoint.config, name):
            problems.missing.append(f"{_PEFT_PREFIX}{name}.lora_A.weight (and lora_B)")
        if path not in overrides and _is_saved(name, _saved_names(checkpoint)):
            problems.missing.append(f"{_PEFT_PREFIX}{name}.weight")
        if path not in overrides and path in modules.random and offered is not None:
            problems.missing.append(
                f"{_PEFT_PREFIX}{name}.weight (the base's files lack it too, so it would be random)"
            )
    if not found.lora:
        problems.missing.append("any lora_A or lora_B tensor")
    problems.raise_if_any()
    return KeyPlan(tuple(sites), overrides, head, copies)


def _used(modules: ModuleMap, naming: _Naming, offered: Collection[str] | None) -> list[str]:
    """The linears that the task model has: of the backbone's all, but for parts that its class leaves out.

    Where the class isn't known, BERT's pooler is taken to be left out: masked language models have none.
    """
    if offered is not None:
        return [path for path in modules.linears if naming.to_checkpoint(path) in offered]
    return [path for path in modules.linears if not path.startswith("pooler.")]


def _saved_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    return tuple(checkpoint.config.get("modules_to_save") or ())


def _sort_keys(checkpoint: Checkpoint) -> _Found:
    found = _Found()
    for key in checkpoint.tensors:
        if "lora_embedding_" in key or "lora_magnitude_vector" in key:
            kind = "LoRA on an embedding" if "lora_embedding_" in key else "DoRA"
            raise UnsupportedAdapterError(f"{checkpoint.source}: {key!r} belongs to {kind}, which isn't supported yet")
        if not key.startswith(_PEFT_PREFIX):
            found.unexpected.append(key)
            continue
        name = key.removeprefix(_PEFT_PREFIX)
        for suffix, part in _LORA_SUFFIXES.items():
            if name.endswith(suffix):
                found.lora.setdefault(name.removesuffix(suffix), {})[part] = key
                break
        else:
            if "lora_" in name or "." not in name:
                found.unexpected.append(key)
            else:
                found.whole[name] = key
    return found


@dataclass(frozen=True)
class _Naming:
    """How a checkpoint names the backbone's modules: ``there`` stands where the backbone has ``here``.

    A classifier's BERT calls its body ``bert.``, a question-answering Llama calls it ``transformer.``, and an adapter
    trained on the body alone gives it no name.
    """

    there: str
    here: str

    @classmethod
    def guess(cls, names: Iterable[str], modules: ModuleMap) -> _Naming:
        """The naming under which most of ``names`` are modules of the backbone; the plainest one among equals."""
        names = list(names)
        first = Counter(f"{name.split('.')[0]}." for name in names).most_common(_NAMINGS)
        candidates = [
            cls(there, here) for there in ("", *(name for name, _ in first)) for here in ("", modules.body_prefix)
        ]
        known = modules.linears.keys() | modules.others
        return max(candidates, key=lambda naming: sum(naming.to_backbone(name) in known for name in names))

    def to_backbone(self, name: str) -> str | None:
        return self.here + name.removeprefix(self.there) if name.startswith(self.there) else None

    def to_checkpoint(self, path: str) -> str:
        return self.there + path.removeprefix(self.here) if path.startswith(self.here) else path

    def locate(self, name: str, modules: ModuleMap) -> str | None:
        """The path of module ``name`` in the backbone, None where it has none."""
        for path in (self.to_backbone(name), name):
            if path is not None and (path in modules.linears or path in modules.others):
                return path
        return None


def _plan_sites(
    checkpoint: Checkpoint, found: _Found, naming: _Naming, modules: ModuleMap, problems: _Problems
) -> tuple[list[Site], set[str]]:
    """The updates whose place was found, and the paths that have one, complete or not."""
    sites = []
    located: set[str] = set()
    for name, parts in found.lora.items():
        path = naming.locate(name, modules)
        if path is None or path not in modules.linears:
            problems.unexpected.extend(parts.values())
            continue
        located.add(path)
        if not is_target(checkpoint.config, name):
            problems.unexpected.extend(f"{key} (the config doesn't target it)" for key in parts.values())
            continue
        with_bias = bool(checkpoint.config.get("lora_bias"))
        if "bias" in parts and not with_bias:
            problems.unexpected.append(f"{parts['bias']} (lora_bias is off)")
        lacking = [
            suffix for suffix, part in _LORA_SUFFIXES.items() if part not in parts and (part != "bias" or with_bias)
        ]
        if lacking:
            problems.missing.extend(f"{_PEFT_PREFIX}{name}{suffix}" for suffix in lacking)
            continue
        rank, scale = rank_and_scale(checkpoint.config, name)
        site = Site(path, parts["a"], parts["b"], parts.get("bias"), rank, scale)
        _check_shapes(site, modules.linears[path], checkpoint.tensors, problems)
        sites.append(site)
    return sites, located


def _check_shapes(site: Site, shape: LinearShape, tensors: Mapping[str, TensorInfo], problems: _Problems) -> None:
    expected: dict[str, tuple[int, ...]] = {site.a: (site.rank, shape.inputs), site.b: (shape.outputs, site.rank)}
    if site.bias:
        expected[site.bias] = (shape.outputs,)
    for key, wanted in expected.items():
        problems.check_shape(key, wanted, tensors[key])


def _plan_whole(
    checkpoint: Checkpoint, found: _Found, naming: _Naming, modules: ModuleMap, problems: _Problems
) -> tuple[dict[str, dict[str, str]], dict[str, str], dict[str, str]]:
    overrides: dict[str, dict[str, str]] = {}
    head: dict[str, str] = {}
    copies: dict[str, str] = {}
    saved = _saved_names(checkpoint)
    for full_name, key in found.whole.items():
        name, _, parameter = full_name.replace(".base_layer.", ".").rpartition(".")
        path = naming.locate(name, modules)
        trained = _is_saved(name, saved)
        if path is None and trained:
            head[f"{name}.{parameter}"] = key
        elif path is None:
            problems.unexpected.append(key)
        elif not trained:
            # PEFT saves embeddings (and the output layer) beside an adapter when it guesses that they were resized.
            copies[f"{path}.{parameter}"] = key
        elif path in modules.linears:
            overrides.setdefault(path, {})[parameter] = key
        else:
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: modules_to_save trained {name!r} inside the backbone; trained embeddings and "
                "norms can't share a backbone with other adapters"
            )
    for path, parameters in overrides.items():
        wanted = modules.linears[path].parameters()
        prefix = f"{_PEFT_PREFIX}{naming.to_checkpoint(path)}"
        problems.missing.extend(f"{prefix}.{name}" for name in wanted.keys() - parameters.keys())
        problems.unexpected.extend(parameters[name] for name in parameters.keys() - wanted.keys())
        for name in wanted.keys() & parameters.keys():
            problems.check_shape(parameters[name], wanted[name], checkpoint.tensors[parameters[name]])
    return overrides, head, copies


def _is_saved(name: str, saved: tuple[str, ...]) -> bool:
    """Does ``modules_to_save`` name this module or one around it? By PEFT's rule a path's end decides.

    So ``classifier`` covers DistilBERT's ``pre_classifier`` too.
    """
    parts = name.split(".")
    return any(".".join(parts[: end + 1]).endswith(saved) for end in range(len(parts)))


@dataclass
class _Problems:
    """Everything wrong with the keys, gathered so that one error tells all."""

    source: str
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def check_shape(self, key: str, wanted: tuple[int, ...], info: TensorInfo) -> None:
        if info.shape != wanted:
            self.misshapen.append(f"{key} is {list(info.shape)}, the backbone needs {list(wanted)}")

    def raise_if_any(self) -> None:
        lists: list[tuple[str, list[Any]]] = [
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.misshapen),
        ]
        parts = []
        for label, items in lists:
            if items:
                more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
                parts.append(f"{label}: {'; '.join(items[:_SHOWN])}{more}")
        if parts:
            raise KeyMismatchError(
                f"{self.source}: its tensors don't fit this backbone. {'. '.join(parts)}. "
                "Was it trained on another architecture, or were its keys renamed?"
            )
