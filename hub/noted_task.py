"""The task of an adapter that came without a manifest, by what PEFT noted: a task type, or the class it was trained in.

https://huggingface.co/docs/peft: ``PeftConfig.task_type``; ``PeftModel.save_pretrained`` writes ``auto_mapping`` where
no type was told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_TYPE: Mapping[str, str] = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "CAUSAL_LM": "text-generation",
    "FEATURE_EXTRACTION": "feature-extraction",
}
_REWRITES = "SEQ_2_SEQ_LM"

PEFT_TYPES = (*_OF_TYPE, _REWRITES)
"""PEFT's task types."""

# What the names of transformers' classes end with.
_HEADED: Mapping[str, str] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForQuestionAnsweringSimple": "question-answering",
}
_HEADS = frozenset(_HEADED.values())
_WITHOUT_HEAD: Mapping[str, str] = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
}
_REWRITING = ("ForConditionalGeneration", "MTModel")
_MASKED_OR_NOT = "WithLMHeadModel"  # XLM's and Flaubert's
_NO_BODIES = ("HeadsModel", "EncoderDecoderModel", "PreTrainedModel", *_REWRITING)


def noted_task(config: Mapping[str, Any]) -> str | None:
    """The task that an ``adapter_config.json`` leaves no doubt about, None where it does.

    An encoder-decoder may summarize, translate or do anything else. A classifier whose head wasn't saved is none.
    """
    told = config.get("task_type")
    if told is not None:
        return _OF_TYPE.get(told) if isinstance(told, str) else None
    name, library = _class_of(config)
    if name.endswith(_MASKED_OR_NOT):
        return None
    for end, task in (*_WITHOUT_HEAD.items(), *_HEADED.items()):
        if name.endswith(end):
            return task if end in _WITHOUT_HEAD or config.get("modules_to_save") else None
    is_body = name.endswith("Model") and not name.endswith(_NO_BODIES) and library.startswith("transformers.")
    return "feature-extraction" if is_body else None


def other_head(config: Mapping[str, Any], task: str) -> str | None:
    """What the adapter was trained for, as a message names it, where its head is certain not to be the task's.

    Heads that classify texts and tokens have the same names and shapes on many bases: nothing else tells them apart.
    """
    noted = noted_task(config)
    if noted == task or not {noted, task} <= _HEADS:
        return None
    told = config.get("task_type")
    return f"{noted} ({_class_of(config)[0] if told is None else f'task_type {told}'} in adapter_config.json)"


def likely_task(config: Mapping[str, Any]) -> str:
    """The task to load it for where nobody says more: text generation for whatever writes, else the states."""
    told = config.get("task_type")
    ends = (*_REWRITING, _MASKED_OR_NOT)
    writes = told == _REWRITES if told is not None else _class_of(config)[0].endswith(ends)
    return noted_task(config) or ("text-generation" if writes else "feature-extraction")


def _class_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """The name of the class that was trained, and the module that it is from; empty where PEFT noted none."""
    mapping = config.get("auto_mapping")
    noted = mapping if isinstance(mapping, Mapping) else {}
    name, library = noted.get("base_model_class"), noted.get("parent_library")
    return name if isinstance(name, str) else "", library if isinstance(library, str) else ""
