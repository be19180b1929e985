"""Heads that an adapter's config doesn't name: until 0.10 PEFT trained and saved them, and wrote nothing of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""What PEFT's model of each ``task_type`` trains whole, whatever ``modules_to_save`` says."""


def naming_its_head(config: Mapping[str, Any], keys: Iterable[str]) -> Mapping[str, Any]:
    """An ``adapter_config.json`` with the head that its checkpoint's ``keys`` hold in ``modules_to_save``, as today.

    Without such keys it is the config as it is: a head that isn't there was random in training, and is missed later.
    """
    task, saved = config.get("task_type"), config.get("modules_to_save", ())
    heads = _HEADS.get(task, ()) if isinstance(task, str) else ()
    if not heads or not (saved is None or isinstance(saved, list)):  # methods without the field have it otherwise
        return config
    parts = {part for key in keys if ".lora_" not in key for part in key.split(".")[:-1]}
    unnamed = [name for name in heads if name in parts and name not in (saved or [])]
    return {**config, "modules_to_save": [*(saved or []), *unnamed]} if unnamed else config
