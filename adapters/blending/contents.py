"""What a checkpoint holds by its own account, read without a backbone: factors by module, and the head beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from lorary.adapters.adapter import task_of
from lorary.adapters.heads.task_heads import TASK_CLASSES
from lorary.adapters.layer.slots import LowRank
from lorary.adapters.matching.keys import PEFT_PREFIX, FoundKeys, is_saved, sort_keys, wanted_tensors
from lorary.adapters.matching.naming import Naming
from lorary.adapters.matching.support import BY_PEFT, check_supported, fields_for_peft
from lorary.adapters.matching.targets import is_target
from lorary.adapters.matching.wrappers import plain_checkpoint, plain_names
from lorary.adapters.proving.golden import load_tensors
from lorary.hub.checkpoint import WEIGHTS_NAME, Checkpoint
from lorary.hub.comparing.scaling import rank_and_scale
from lorary.hub.errors import BlendError, KeyMismatchError, NoEffectError


@dataclass(frozen=True)
class Contents:
    """A checkpoint's tensors by the names that its task model has for things, the file's dtype kept.

    ``sites``: module -> its update; ``embeddings`` are those of them that look ids up. ``head``: the task head's
    parameters. ``copies``: parameters of the base that PEFT saved along.
    """

    sites: Mapping[str, LowRank]
    embeddings: frozenset[str]
    head: Mapping[str, torch.Tensor]
    copies: Mapping[str, torch.Tensor]

    @property
    def rank(self) -> int:
        """The largest rank at any site."""
        return max(site.rank for site in self.sites.values())

    def named_like(self, other: Contents) -> Contents:
        """The same with the names that ``other``'s task model has for the shared body's modules.

        A classifier's BERT calls its body ``bert.``, and an adapter trained on the body alone gives it no name.
        """
        here, there = ({f"{name.split('.')[0]}." for name in contents.sites} for contents in (self, other))
        known = {name.rpartition(".")[0] for name in other.sites}

        def fit(naming: Naming) -> int:
            paths = map(naming.to_backbone, self.sites)
            return sum(path is not None and path.rpartition(".")[0] in known for path in paths)

        # Never one prefix for another: a T5's encoder and decoder have layers of the same names.
        candidates = [
            Naming("", ""),
            *(Naming(old, "") for old in sorted(here)),
            *(Naming("", new) for new in sorted(there)),
        ]
        naming = max(candidates, key=fit)  # the first of equals leaves the names as they are
        names = {name: naming.to_backbone(name) or name for name in self.sites}
        return replace(
            self,
            sites={names[name]: site for name, site in self.sites.items()},
            embeddings=frozenset(names[name] for name in self.embeddings),
            copies={naming.to_backbone(name) or name: tensor for name, tensor in self.copies.items()},
        )


def read_contents(checkpoint: Checkpoint) -> Contents:
    """Read a checkpoint whose adapter is a plain sum of low-rank updates, and check it against its own config.

    Raises:
        UnsupportedAdapterError: see :func:`check_supported`.
        BlendError: the adapter isn't such a sum: DoRA, whole modules trained inside the backbone, new tokens, or what
            else only PEFT can run.
        KeyMismatchError: tensors that are missing, unexpected, or not of the config's rank.
        NoEffectError: tensors that hold NaN or infinity.
    """
    check_supported(checkpoint)
    source = checkpoint.source
    if checkpoint.config.get("use_dora"):
        raise BlendError(
            f"{source}: is a DoRA adapter; its magnitudes are relative to one adapter's own direction, so several "
            "don't add up. Merge it into a model of its own, or train it without use_dora"
        )
    for field in fields_for_peft(checkpoint):
        raise BlendError(
            f"{source}: its config has {field} ({BY_PEFT[field]}), which isn't a low-rank update that could be weighed "
            "against another; merge it into a model of its own"
        )
    names, checkpoint = plain_names(checkpoint.tensors), plain_checkpoint(checkpoint)
    found = sort_keys(checkpoint)
    if found.unexpected:
        raise KeyMismatchError(f"{source}: unexpected: {found.unexpected[0]}; were its keys renamed?")
    if not found.lora:
        raise KeyMismatchError(f"{source}: missing: any lora_A or lora_B tensor")
    tensors = {names[key]: tensor for key, tensor in load_tensors(checkpoint.files[WEIGHTS_NAME]).items()}
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            raise NoEffectError(f"{source}: {key} holds NaN or infinity; the training run diverged, train again")
    embeddings = frozenset(name for name, parts in found.lora.items() if any("_embedding_" in end for end in parts))
    sites = {
        name: _update(checkpoint, name, parts, tensors, embedding=name in embeddings)
        for name, parts in sorted(found.lora.items())
    }
    head, copies = _whole(checkpoint, found, tensors)
    return Contents(sites, embeddings, head, copies)


def _update(
    checkpoint: Checkpoint, name: str, parts: Mapping[str, str], tensors: Mapping[str, torch.Tensor], *, embedding: bool
) -> LowRank:
    source, wanted = checkpoint.source, wanted_tensors(checkpoint.config, embedding=embedding)
    if not is_target(checkpoint.config, name, embedding=embedding):
        raise KeyMismatchError(f"{source}: unexpected: {next(iter(parts.values()))} (the config doesn't target it)")
    for end in wanted:
        if end not in parts:
            raise KeyMismatchError(f"{source}: missing: {PEFT_PREFIX}{name}{end}")
    for end, key in parts.items():
        if end not in wanted:
            raise KeyMismatchError(f"{source}: unexpected: {key} (the config doesn't ask for it)")
    rank, scale = rank_and_scale(checkpoint.config, name)
    a, b, *bias = (tensors[parts[end]] for end in wanted)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise KeyMismatchError(
            f"{source}: at {name} A is {list(a.shape)} and B {list(b.shape)}; the config says rank {rank}"
        )
    return LowRank(a, b, bias[0] if bias else None, scale)


def _whole(
    checkpoint: Checkpoint, found: FoundKeys, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The head's parameters and the base's own that PEFT saved along."""
    saved = tuple(checkpoint.config.get("modules_to_save") or ())
    body = {name.split(".")[0] for name in found.lora}
    head: dict[str, torch.Tensor] = {}
    copies: dict[str, torch.Tensor] = {}
    for name, key in found.whole.items():
        if not is_saved(name.rpartition(".")[0], saved):
            copies[name.replace(".base_layer.", ".")] = tensors[key]
        elif name.split(".")[0] not in body and task_of(checkpoint) in TASK_CLASSES:
            head[name] = tensors[key]
        else:
            raise BlendError(
                f"{checkpoint.source}: trained {name.rpartition('.')[0]!r} whole, inside the backbone; a whole module "
                "isn't an update that can be weighed against another"
            )
    return head, copies
