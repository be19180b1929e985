"""Matching a checkpoint's keys with a backbone's modules: every key finds its place, every place its key.

PEFT loads what matches and warns, or not, about the rest; an adapter whose keys carry another prefix then does nothing.
Here a key that is missing, unexpected or of another shape is an error that names it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lorary.adapters.base.modules import LinearShape, ModuleMap
from lorary.adapters.matching.naming import Naming
from lorary.adapters.matching.problems import KeyProblems
from lorary.adapters.matching.targets import is_target
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.comparing.scaling import rank_and_scale
from lorary.hub.errors import UnsupportedAdapterError
from lorary.hub.tensorfile import TensorInfo

PEFT_PREFIX = "base_model.model."
_A, _B, _BIAS = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"
_EMBEDDING_A, _EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
_MAGNITUDE = ".lora_magnitude_vector"
_OFF = {_BIAS: "lora_bias is off", _MAGNITUDE: "use_dora is off"}
_LORA_SUFFIXES = (_A, _B, _BIAS, _EMBEDDING_A, _EMBEDDING_B, _MAGNITUDE)


@dataclass(frozen=True)
class Site:
    """One low-rank update: where it acts, the keys of its tensors, its rank and its scale.

    ``bias`` is there with ``lora_bias``, ``magnitude`` with DoRA.
    """

    path: str
    a: str
    b: str
    bias: str | None
    magnitude: str | None
    rank: int
    scale: float

    def under(self, names: Mapping[str, str]) -> Site:
        """The site with each key under another name."""
        bias, magnitude = (None if key is None else names[key] for key in (self.bias, self.magnitude))
        return replace(self, a=names[self.a], b=names[self.b], bias=bias, magnitude=magnitude)


@dataclass(frozen=True)
class KeyPlan:
    """Where each tensor of a checkpoint belongs.

    ``overrides``: linear modules of the backbone that were trained whole, path -> parameter -> key.
    ``head``: the task head's parameters, name in the task model -> key.
    ``copies``: parameters that PEFT saved beside the adapter and that must equal the backbone's, path -> key.
    ``head_sites``: low-rank updates of a head that the base brings, by their paths in the task model.
    """

    sites: tuple[Site, ...]
    overrides: Mapping[str, Mapping[str, str]]
    head: Mapping[str, str]
    copies: Mapping[str, str]
    head_sites: tuple[Site, ...] = ()

    def under(self, names: Mapping[str, str]) -> KeyPlan:
        """The plan with each key under another name."""
        return KeyPlan(
            tuple(site.under(names) for site in self.sites),
            {path: {part: names[key] for part, key in keys.items()} for path, keys in self.overrides.items()},
            {name: names[key] for name, key in self.head.items()},
            {path: names[key] for path, key in self.copies.items()},
            tuple(site.under(names) for site in self.head_sites),
        )


@dataclass
class FoundKeys:
    """What the keys say, before it is held against a backbone.

    ``lora``: module -> end of the key -> key. ``whole``: parameter of a whole module -> key.
    """

    lora: dict[str, dict[str, str]] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)


def plan_keys(
    checkpoint: Checkpoint,
    modules: ModuleMap,
    offered: Collection[str] | None = None,
    head: Mapping[str, LinearShape] | None = None,
) -> KeyPlan:
    """Find the place of every tensor of ``checkpoint`` in a backbone with these ``modules``.

    ``offered`` names the modules of the task model that the adapter was trained in, where that isn't the backbone;
    ``head`` are the linear ones of a head that the base brings, which an adapter may have updated too.

    Raises:
        KeyMismatchError: keys are missing, unexpected or of another shape; the message names the first of each.
        UnsupportedAdapterError: the tensors are those of a variant that the slots don't hold.
    """
    found = sort_keys(checkpoint)
    naming = Naming.guess([*found.lora, *(name.rpartition(".")[0] for name in found.whole)], modules)
    problems = KeyProblems(checkpoint.source)
    problems.unexpected.extend(found.unexpected)
    head_sites = _plan_head(checkpoint, found, head or {}, problems)
    sites, located = _plan_sites(checkpoint, found, naming, modules, problems)
    overrides, whole, copies = _plan_whole(checkpoint, found, naming, modules, problems)
    for path in _used([*modules.linears, *modules.embeddings], naming, offered):
        name = naming.to_checkpoint(path)
        if path not in located and is_target(checkpoint.config, name, embedding=path in modules.embeddings):
            first, *others = wanted_tensors(checkpoint.config, embedding=path in modules.embeddings)
            problems.missing.append(f"{PEFT_PREFIX}{name}{first} (and {', '.join(others)})")
        if path in modules.linears and path not in overrides and path in modules.random and offered is not None:
            problems.missing.append(f"{PEFT_PREFIX}{name}.weight (the base's files lack it too, so it would be random)")
    for path in _used([*modules.linears, *modules.embeddings, *sorted(modules.weighted)], naming, offered):
        name = naming.to_checkpoint(path)
        if path not in overrides and is_saved(name, _saved_names(checkpoint)):
            problems.missing.append(f"{PEFT_PREFIX}{name}.weight")
    if not found.lora and not head_sites:
        problems.missing.append("any lora_A or lora_B tensor")
    problems.raise_if_any()
    return KeyPlan(tuple(sites), overrides, whole, copies, tuple(head_sites))


def _used(paths: Sequence[str], naming: Naming, offered: Collection[str] | None) -> list[str]:
    """Of these modules of the backbone those that the task model has: all, but for parts that its class leaves out.

    Where the class isn't known, BERT's pooler is taken to be left out: masked language models have none.
    """
    if offered is not None:
        return [path for path in paths if naming.to_checkpoint(path) in offered]
    return [path for path in paths if not path.startswith("pooler.")]


def _saved_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    return tuple(checkpoint.config.get("modules_to_save") or ())


def sort_keys(checkpoint: Checkpoint) -> FoundKeys:
    """A checkpoint's keys by what they are: factors by module, parameters of whole modules, and what is neither."""
    found = FoundKeys()
    for key in checkpoint.tensors:
        if not key.startswith(PEFT_PREFIX):
            found.unexpected.append(key)
            continue
        name = key.removeprefix(PEFT_PREFIX)
        suffix = next((suffix for suffix in _LORA_SUFFIXES if name.endswith(suffix)), None)
        if suffix is not None:
            found.lora.setdefault(name.removesuffix(suffix), {})[suffix] = key
        elif "lora_" in name or "." not in name:
            found.unexpected.append(key)
        else:
            found.whole[name] = key
    return found


def wanted_tensors(config: Mapping[str, Any], *, embedding: bool) -> list[str]:
    """The tensors that each site of an adapter with this config has, by the ends of their keys: A, B and others."""
    magnitude = [_MAGNITUDE] if config.get("use_dora") else []
    if embedding:
        return [_EMBEDDING_A, _EMBEDDING_B, *magnitude]
    return [_A, _B, *([_BIAS] if config.get("lora_bias") else []), *magnitude]


def _plan_sites(
    checkpoint: Checkpoint, found: FoundKeys, naming: Naming, modules: ModuleMap, problems: KeyProblems
) -> tuple[list[Site], set[str]]:
    """The updates whose place was found, and the paths that have one, complete or not."""
    sites = []
    located: set[str] = set()
    for name, parts in found.lora.items():
        path = naming.locate(name, modules)
        shape = modules.site(path) if path is not None else None
        if path is None or shape is None:
            problems.unexpected.extend(parts.values())
            continue
        located.add(path)
        site = _plan_site(checkpoint, name, path, parts, shape, problems)
        if site is not None:
            sites.append(site)
    return sites, located


def _plan_head(
    checkpoint: Checkpoint, found: FoundKeys, head: Mapping[str, LinearShape], problems: KeyProblems
) -> list[Site]:
    """The updates of the base's own head; they are taken out of ``found``."""
    sites = []
    for name, shape in head.items():
        parts = found.lora.pop(name, None)
        site = _plan_site(checkpoint, name, name, parts, shape, problems) if parts else None
        if site is not None:
            sites.append(site)
        if parts is None and is_target(checkpoint.config, name):
            first, *others = wanted_tensors(checkpoint.config, embedding=False)
            problems.missing.append(f"{PEFT_PREFIX}{name}{first} (and {', '.join(others)})")
        if is_saved(name, _saved_names(checkpoint)) and f"{name}.weight" not in found.whole:
            problems.missing.append(f"{PEFT_PREFIX}{name}.weight")
    return sites


def _plan_site(
    checkpoint: Checkpoint,
    name: str,
    path: str,
    parts: Mapping[str, str],
    shape: LinearShape,
    problems: KeyProblems,
) -> Site | None:
    """The update whose tensors are ``parts``, None where they aren't all there, or aren't the config's."""
    if not is_target(checkpoint.config, name, embedding=shape.embedding):
        problems.unexpected.extend(f"{key} (the config doesn't target it)" for key in parts.values())
        return None
    wanted = wanted_tensors(checkpoint.config, embedding=shape.embedding)
    problems.unexpected.extend(
        f"{key} ({_OFF.get(suffix, 'not for this kind of module')})"
        for suffix, key in parts.items()
        if suffix not in wanted
    )
    lacking = [suffix for suffix in wanted if suffix not in parts]
    if lacking:
        problems.missing.extend(f"{PEFT_PREFIX}{name}{suffix}" for suffix in lacking)
        return None
    rank, scale = rank_and_scale(checkpoint.config, name)
    a, b = (parts[suffix] for suffix in wanted[:2])
    site = Site(path, a, b, parts.get(_BIAS), parts.get(_MAGNITUDE), rank, scale)
    _check_shapes(site, shape, checkpoint.tensors, problems)
    return site


def _check_shapes(site: Site, shape: LinearShape, tensors: Mapping[str, TensorInfo], problems: KeyProblems) -> None:
    problems.check_shape(site.a, (site.rank, shape.inputs), tensors[site.a])
    problems.check_shape(site.b, (shape.outputs, site.rank), tensors[site.b])
    for vector in (site.bias, site.magnitude):
        if vector is not None:
            problems.check_shape(vector, (shape.outputs,), tensors[vector])


def _plan_whole(
    checkpoint: Checkpoint, found: FoundKeys, naming: Naming, modules: ModuleMap, problems: KeyProblems
) -> tuple[dict[str, dict[str, str]], dict[str, str], dict[str, str]]:
    overrides: dict[str, dict[str, str]] = {}
    head: dict[str, str] = {}
    copies: dict[str, str] = {}
    saved = _saved_names(checkpoint)
    for full_name, key in found.whole.items():
        name, _, parameter = full_name.replace(".base_layer.", ".").rpartition(".")
        path = naming.locate(name, modules)
        trained = is_saved(name, saved)
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
        prefix = f"{PEFT_PREFIX}{naming.to_checkpoint(path)}"
        problems.missing.extend(f"{prefix}.{name}" for name in wanted.keys() - parameters.keys())
        problems.unexpected.extend(parameters[name] for name in parameters.keys() - wanted.keys())
        for name in wanted.keys() & parameters.keys():
            problems.check_shape(parameters[name], wanted[name], checkpoint.tensors[parameters[name]])
    return overrides, head, copies


def is_saved(name: str, saved: tuple[str, ...]) -> bool:
    """Does ``modules_to_save`` name this module or one around it? By PEFT's rule a path's end decides.

    So ``classifier`` covers DistilBERT's ``pre_classifier`` too.
    """
    parts = name.split(".")
    return any(".".join(parts[: end + 1]).endswith(saved) for end in range(len(parts)))
