"""A blend's files: the config, which makes every scale 1, the weights, the tokenizer, and the manifest, which tells
the parents.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lorary.adapters.adapter import task_of
from lorary.adapters.blending.combination import Combination
from lorary.adapters.blending.parts import Part
from lorary.adapters.layer.slots import LowRank
from lorary.adapters.matching.targets import is_target
from lorary.adapters.text.tokenizers import tokenizer_files
from lorary.hub.checkpoint import CONFIG_NAME, WEIGHTS_NAME, canonical_config
from lorary.hub.errors import BaseMismatchError
from lorary.hub.manifest import BaseIdentity, Manifest, Numerics
from lorary.hub.provenance.cleaning import clean_config, clean_manifest
from lorary.hub.reference import normalise_domain

_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def blend_config(
    owner: Part, parts: Sequence[Part], sites: Mapping[str, LowRank], embeddings: frozenset[str]
) -> dict[str, Any]:
    """The blend's ``adapter_config.json``: the owner's, with the scale 1 at every site, and the sites as targets."""
    ranks = {name: site.rank for name, site in sites.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    # A pattern matches by a module's end unless it is held at the start.
    others = {f"^{re.escape(name)}": own for name, own in ranks.items() if own != rank}
    config = {
        **owner.checkpoint.config,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_rslora": False,
        "lora_bias": any(site.bias is not None for site in sites.values()),
        "init_lora_weights": True,
        "inference_mode": True,
    }
    said = [{field: canonical_config(part.checkpoint.config).get(field) for field in _TARGETS} for part in parts]
    told = all(is_target(config, name, embedding=name in embeddings) for name in sites)
    if not told or any(targets != said[0] for targets in said):
        config |= dict.fromkeys(_TARGETS) | {"target_modules": sorted(sites)}
    if not owner.contents.head:
        config["modules_to_save"] = None
    return config


def common_base(parts: Sequence[Part]) -> BaseIdentity:
    """The base that all parts belong to; its fingerprint is known only if each of them says it."""
    said = [(part, part.checkpoint.manifest.base) for part in parts if part.checkpoint.manifest]
    known = [(part, base) for part, base in said if base.fingerprint]
    for part, base in known[1:]:
        first, ours = known[0]
        if base.fingerprint != ours.fingerprint:
            raise BaseMismatchError(
                f"{first.name} was trained on {ours.id!r} (fingerprint {str(ours.fingerprint)[:12]}), {part.name} on "
                f"{base.id!r} ({str(base.fingerprint)[:12]}); only adapters of one base can be combined"
            )
    if known:
        return known[0][1] if len(known) == len(parts) else replace(known[0][1], fingerprint=None)
    if said:
        return said[0][1]
    return BaseIdentity(str(parts[0].checkpoint.config.get("base_model_name_or_path") or "unknown"))


def blend_manifest(
    owner: Part, parts: Sequence[Part], base: BaseIdentity, domain: str | None, provenance: Mapping[str, Any]
) -> Manifest:
    """The blend's manifest: the owner's but for what the parts decide together. It has no golden logits yet."""
    own = owner.checkpoint.manifest or Manifest(task=task_of(owner.checkpoint), base=base)
    numerics = {part.checkpoint.manifest.numerics for part in parts if part.checkpoint.manifest}
    domains = {part.domain for part in parts}
    domain = domain or (domains.pop() if len(domains) == 1 else None)
    blend = replace(
        own,
        base=base,
        domain=normalise_domain(domain) if domain else None,
        numerics=numerics.pop() if len(numerics) == 1 else Numerics(),
        thresholds=None,  # they were tuned on the scores of one of the adapters
        golden_rows=(),
        provenance=provenance,
    )
    return clean_manifest(blend)


def blend_provenance(parts: Sequence[Part], how: Combination, head: str) -> dict[str, Any]:
    """What the blend was made from and how: each adapter's digest and weight, the kind and what it read, whose head."""
    parents = [
        {"name": part.title, "reference": part.reference, "digest": part.checkpoint.digest, "weight": part.weight}
        for part in parts
    ]
    return {
        "strategy": "blend",
        "blend": {"combination": how.kind, **how.settings(), "head": head, "adapters": parents},
    }


def copy_tokenizer(owner: Part, folder: Path) -> None:
    """Put the owner's tokenizer beside the blend, where it brought one."""
    for name, path in tokenizer_files(owner.checkpoint).items():
        shutil.copyfile(path, folder / name)


def write_files(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write config and weights as PEFT does, in one order."""
    from safetensors.torch import save_file

    save_file({key: tensors[key].contiguous() for key in sorted(tensors)}, folder / WEIGHTS_NAME, {"format": "pt"})
    (folder / CONFIG_NAME).write_text(
        json.dumps(clean_config(config), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
