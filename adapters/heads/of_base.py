"""What a base has of task heads: layers that its task classes share with the head it was pretrained with.

ModernBERT's classifiers put the dense layer and the norm of its masked-language-modelling head before their last layer,
so an adapter that PEFT saved brings the last layer alone. They are read from the base when an adapter first needs them.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Any

import torch

from lorary.adapters.base.identity import body_of, fingerprint_model
from lorary.adapters.base.loading import quietly
from lorary.hub.base_files import resolve_base
from lorary.hub.errors import BaseNotFoundError


class HeadsOfBase:
    """The head layers of one backbone's base: those of the model it was given, else those in the base's files.

    Args:
        given: the model that the backbone was made around. Of a language model its head is known to be trained; that of
            a classifier may be a random one.
        base: the base's folder or id.
        fingerprint: the backbone's, which the files' must equal; None where it has none.
        random: the given model's parameters that its files lack.
    """

    def __init__(self, given: Any, *, base: str, fingerprint: str | None, random: Collection[str] = ()) -> None:
        of_given = _beside_body(given) if given.get_output_embeddings() is not None else {}
        self._given = {name: tensor for name, tensor in of_given.items() if name not in random}
        self._base, self._fingerprint = base, fingerprint
        self._read: dict[type, Mapping[str, torch.Tensor]] = {}
        self._lock = threading.Lock()

    def tensors(self, task_class: type, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Those of the parameters of a task class that the base has, of these ``names`` beside the body.

        Reading them from files takes as much memory as the base, for as long as that lasts, once for each class.
        """
        with self._lock:
            found = self._given
            if names - found.keys():
                if task_class not in self._read:
                    self._read[task_class] = self._in_files(task_class)
                found = {**self._read[task_class], **found}
        return {name: found[name] for name in names if name in found}

    def _in_files(self, task_class: Any) -> Mapping[str, torch.Tensor]:
        try:
            with quietly():
                # Loading in another dtype would make it the whole process's default meanwhile.
                model, info = task_class.from_pretrained(
                    resolve_base(self._base).path, dtype=torch.float32, output_loading_info=True
                )
        except (BaseNotFoundError, OSError, ValueError):
            return {}  # a model that was made in memory, or files that are gone: then there is nothing to find
        if self._fingerprint is not None and fingerprint_model(model) != self._fingerprint:
            return {}
        missing = set(info["missing_keys"])
        return {name: tensor.clone() for name, tensor in _beside_body(model).items() if name not in missing}


def _beside_body(model: Any) -> dict[str, torch.Tensor]:
    """A model's parameters without those of its body."""
    of_body = {id(parameter) for parameter in body_of(model).parameters()}
    named = model.named_parameters()
    return {name: parameter.detach() for name, parameter in named if id(parameter) not in of_body}
