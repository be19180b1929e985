"""Quantized backbones through bitsandbytes, CPU and CUDA: 4-bit (QLoRA, Dettmers et al. 2023), 8-bit (LLM.int8, 2022).

Two traps are closed here for training and serving alike: task heads that transformers' default skip list would
quantize, and a CPU fast path of bitsandbytes that rewrites weights in a layout nothing else understands.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lorary.adapters.base.modules import linear_shape
from lorary.hub.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

QUANTIZATIONS = ("none", "nf4", "fp4", "nf4-single", "fp4-single", "int8")
"""What a base can be quantized to. 4-bit kinds quantize the scales of their blocks too, ``-single`` ones don't."""

_SINGLE = "-single"

HEAD_MODULES = (
    "lm_head", "embed_out", "output_projection", "lm_loss", "score", "classifier", "pre_classifier",
    "classification_head", "qa_outputs", "qa_output", "cls", "vocab_transform", "vocab_projector", "pooler.dense",
    "pooler",
)  # fmt: skip
"""Modules that stay in full precision: a head is trained or tied, and a quantized one can be neither.

transformers' own list takes the last parameter's name only, which leaves the heads of BERT, DistilBERT and RoBERTa
quantized. The list is the same for training and serving, so that both quantize the same modules.
"""

READ_BY_MODELS = ("dt_proj",)
"""Modules that stay in full precision too: Mamba, Falcon Mamba and Jamba multiply with their weights by themselves."""


def quantization_config(
    kind: str, compute_dtype: torch.dtype, skip_modules: Sequence[str] = ()
) -> BitsAndBytesConfig | None:
    """The config that makes transformers quantize while loading, or None for ``none``.

    Args:
        kind: one of :data:`QUANTIZATIONS`.
        compute_dtype: the dtype that 4-bit weights are dequantized to for each product.
        skip_modules: names to leave in full precision besides the above; passing any replaces the
            library's defaults, which is why the heads are always listed.

    Raises:
        UsageError: an unknown kind.
        MissingDependencyError: bitsandbytes isn't installed.
    """
    if kind not in QUANTIZATIONS:
        raise UsageError(f"unknown quantization {kind!r}; expected one of {', '.join(QUANTIZATIONS)}")
    if kind == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            f"quantization {kind!r} needs bitsandbytes: pip install bitsandbytes, or use quantization 'none'"
        )
    from transformers import BitsAndBytesConfig

    quieten()
    skip = sorted({*HEAD_MODULES, *READ_BY_MODELS, *skip_modules})
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind.removesuffix(_SINGLE),
        bnb_4bit_use_double_quant=not kind.endswith(_SINGLE),
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=skip,
    )


def guard_cpu(model: torch.nn.Module) -> int:
    """Keep 4-bit layers from repacking their weights on CPUs with AVX512-BF16; returns how many layers were guarded.

    There, the first forward without gradients repacks each layer, after which gradients, ``dequantize``, merging and
    saving are wrong. The flag is bitsandbytes' own (``Linear4bit.support_avx512bf16_for_cpu``); no other CPU reads it.
    """
    guarded = 0
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - torch types a module's attributes too narrowly
            guarded += 1
    return guarded


def dense_weight(module: torch.nn.Module) -> torch.Tensor:
    """A module's weight as numbers, dequantized where bitsandbytes holds it, and laid out as it is unquantized."""
    weight: Any = module.weight
    if type(weight).__name__ in ("Params4bit", "Int8Params"):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        weight = dequantize_bnb_weight(weight, state=getattr(module, "state", None))
        shape = linear_shape(module)
        weight = weight.T if shape is not None and shape.transposed else weight
    dense: torch.Tensor = weight.detach()
    return dense


def quantization_of(model: Any) -> str:
    """Which of :data:`QUANTIZATIONS` a loaded model uses, from its own config."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return "none"
    settings = config if isinstance(config, dict) else config.to_dict()
    if settings.get("load_in_8bit"):
        return "int8"
    if settings.get("load_in_4bit"):
        # bitsandbytes' own defaults, where a pre-quantized base's config leaves them out.
        double = settings.get("bnb_4bit_use_double_quant", False)
        return f"{settings.get('bnb_4bit_quant_type', 'fp4')}{'' if double else _SINGLE}"
    return str(settings.get("quant_method", "none"))


def quieten() -> None:
    """Silence lines that every 8-bit call and every import on a CPU would print, and that ask nothing of the user."""
    for name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
        logger = logging.getLogger(name)
        if logger.level != logging.ERROR:  # setting it goes through all loggers of the process
            logger.setLevel(logging.ERROR)
