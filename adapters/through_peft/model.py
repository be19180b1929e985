"""PEFT's own model of one adapter, over a mirror of the backbone: PEFT computes, the backbone's weights are shared.

The steps are those of ``peft.PeftModel.from_pretrained``, but what it warns of, or doesn't see, is an error: every key
of the file must find its place, every place its key, and nothing is written into memory that the backbone uses.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from lorary.adapters.matching.problems import KeyProblems
from lorary.adapters.matching.renaming import rename_tensors
from lorary.adapters.matching.soundness import is_copy
from lorary.adapters.matching.support import is_off
from lorary.adapters.matching.targets import MOST_PATTERNS, is_target
from lorary.adapters.through_peft.mirror import memory_of
from lorary.adapters.through_peft.sizes import demand_sizes
from lorary.adapters.through_peft.vocabulary import TRAINED_ROWS
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import KeyMismatchError, UnsupportedAdapterError, first_line

ADAPTER = "default"  # PEFT's own name for an only adapter
_PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules")
_SAVED = ".modules_to_save."
_BASE_BIAS = ".base_layer.bias"
_LOST_BIASES = (
    'PEFT 0.7 to 0.20 saved no biases for bias="lora_only", so those that it trained are lost; to serve the rest with '
    'the base\'s, write "bias": "none" into adapter_config.json'
)
_PARTS_OF_A_WRAPPER = (".original_module.", _SAVED)
_SHORTHANDS = ("all-linear",)
_PLAIN_TEXT = ("ADAPTION_PROMPT",)  # there it is the end of a name
_LEFT_TO_PEFT = (
    "rank_pattern", "alpha_pattern", "lambda_pattern", "block_size_pattern", "n_frequency_pattern", "layers_pattern",
    "modules_to_save",
)  # fmt: skip
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]")
_REPETITION = re.compile(r"[*+{]")
_MOST_REPETITIONS = 4  # each multiplies the places in a name at which a match may be tried
_INITIALISATION = ("eva_config", "loftq_config", "corda_config", "lora_ga_config")


def build_peft_model(
    checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], model: Any, backbone: torch.nn.Module
) -> Any:
    """Put an adapter into ``model`` by PEFT and give it its tensors.

    Args:
        checkpoint: an adapter of any method that PEFT knows.
        tensors: its tensors.
        model: a mirror of the backbone, or a task model around one; PEFT changes it.
        backbone: whose memory isn't to be written to.

    Returns:
        A ``peft.PeftModel``, for inference.

    Raises:
        KeyMismatchError: keys are missing, unexpected or of another shape.
        UnsupportedAdapterError: PEFT can't put the adapter into this model; the message is its own.
    """
    demand_sizes(checkpoint)
    checkpoint = replace(checkpoint, config=_without_patterns(checkpoint, model))
    config = peft_config(checkpoint)
    shared = memory_of(backbone)
    with peft_errors(checkpoint), warnings.catch_warnings():
        # Of what may go wrong in merging, where weights that are one here get memory of their own first.
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer", UserWarning)
        peft_model = _peft_class(config)(model, config, ADAPTER)
        wanted = _wanted(peft_model)
        own = dict(tensors)
        if not own.keys() >= wanted.keys():
            own = rename_tensors(own, peft_model, config, ADAPTER)
    own = _without_copies(own, wanted, peft_model, checkpoint.source)
    _demand_match(own, wanted, checkpoint.source)
    _separate(peft_model, {tensor.data_ptr() for tensor in wanted.values()} & shared)
    with peft_errors(checkpoint):
        _load(peft_model, own, checkpoint.source)
    peft_model.requires_grad_(False)
    return peft_model.eval()


def peft_config(checkpoint: Checkpoint) -> Any:
    """PEFT's config object of a checkpoint, for inference.

    Raises:
        UnsupportedAdapterError: it has a field that the installed PEFT doesn't know, or a value that PEFT refuses.
    """
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[checkpoint.peft_type])}
    unknown = [name for name, value in checkpoint.config.items() if name not in known and not is_off(value)]
    if unknown:
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: {', '.join(unknown)} in its config: the installed PEFT knows no such field of "
            f"{checkpoint.peft_type}; install the version that wrote it ({checkpoint.config.get('peft_version')})"
        )
    settings = {name: value for name, value in checkpoint.config.items() if name in known}
    if checkpoint.peft_type == "LORA":
        # The file's own factors follow, and some initialisations would rewrite the base's weights before.
        settings = {name: value for name, value in settings.items() if name not in _INITIALISATION}
        settings |= {"init_lora_weights": True, **_of_fused_experts(settings)}
    with peft_errors(checkpoint):
        return PeftConfig.from_peft_type(**{**settings, "inference_mode": True})


def _of_fused_experts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What PEFT has to be told otherwise for factors of single experts that it fuses; the same to all others.

    It refuses a dropout there, which acts in training alone. And with the rank it multiplies alpha, which is right for
    alpha / r, but not for rsLoRA's alpha / sqrt(r): told alpha * sqrt(r), the former is the latter.
    """
    told: dict[str, Any] = {"lora_dropout": 0.0}
    rank = settings.get("r")
    if settings.get("use_rslora") and isinstance(rank, int) and not settings.get("rank_pattern"):
        root = math.sqrt(rank)
        alphas = settings.get("alpha_pattern") or {}
        told |= {
            "use_rslora": False,
            "lora_alpha": settings.get("lora_alpha", 8) * root,
            "alpha_pattern": {name: alpha * root for name, alpha in alphas.items()},
        }
    return told


def peft_state(peft_model: Any) -> dict[str, torch.Tensor]:
    """An adapter's tensors as PEFT would save them: float32 on the CPU."""
    return {key: tensor.detach().float().cpu() for key, tensor in _wanted(peft_model).items()}


def _peft_class(config: Any) -> Any:
    """PEFT's class for the config's task.

    That of question answering (0.21) drops ``token_type_ids``, by which a BERT tells question and context apart, so it
    serves only where its virtual tokens are needed; its plain class hands everything on.
    """
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModel, TaskType

    plain = config.task_type == TaskType.QUESTION_ANS and not config.is_prompt_learning
    return PeftModel if plain else MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)


def _wanted(peft_model: Any) -> dict[str, torch.Tensor]:
    """What PEFT would save of the adapter, which is what its file must hold: key to the tensor's present place."""
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(peft_model, adapter_name=ADAPTER, save_embedding_layers=False))


def _without_copies(
    tensors: dict[str, torch.Tensor], wanted: Mapping[str, Any], peft_model: Any, source: str
) -> dict[str, torch.Tensor]:
    """The tensors but for parameters of the base that PEFT saved along, which must be the backbone's own.

    Raises:
        KeyMismatchError: they have another shape.
        UnsupportedAdapterError: they have other values.
    """
    for key in [key for key in tensors if key not in wanted and _has_twin(key, tensors, wanted)]:
        tensors.pop(key)
    extra = tensors.keys() - wanted.keys()
    parameters = peft_model.state_dict() if extra else {}
    for key in sorted(extra & parameters.keys()):
        own, saved = parameters[key], tensors.pop(key)
        if own.shape != saved.shape:
            raise KeyMismatchError(
                f"{source}: carries {key!r} of shape {list(saved.shape)}, the backbone's is {list(own.shape)}"
            )
        if not is_copy(saved, own):
            raise UnsupportedAdapterError(
                f"{source}: carries {key!r} with other values than the backbone's, and its config doesn't say that it "
                "was trained; name it in modules_to_save and save the adapter again"
            )
    return tensors


def _has_twin(key: str, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, Any]) -> bool:
    """Is a tensor there a second time? PEFT saves all that lies under an embedding, or a tied output layer, it keeps.

    So a module that was trained whole comes under its wrapper's name for it too, and trained rows that two layers share
    with each of them.
    """
    if _SAVED in key:
        twins = [key.replace(_SAVED, ".")]
    elif key.endswith(TRAINED_ROWS):
        twins = [name for name in wanted if name.endswith(TRAINED_ROWS)]
    else:
        twins = []
    return any(torch.equal(tensors[key], tensors[twin]) for twin in twins if twin in tensors)


def _demand_match(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], source: str) -> None:
    problems = KeyProblems(source)
    problems.missing.extend(sorted(wanted.keys() - tensors.keys()))
    if problems.missing and all(key.endswith(_BASE_BIAS) for key in problems.missing):
        problems.hint = _LOST_BIASES
    problems.unexpected.extend(sorted(tensors.keys() - wanted.keys()))
    for key in sorted(wanted.keys() & tensors.keys()):
        problems.check_shape(key, tuple(wanted[key].shape), tensors[key])
    problems.raise_if_any()


def _separate(peft_model: torch.nn.Module, places: set[int]) -> None:
    """Give parameters of the base that the adapter trained memory of their own, so that its values can be put there."""
    for module in peft_model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.data_ptr() in places:
                module._parameters[name] = torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)


def _load(peft_model: Any, tensors: dict[str, torch.Tensor], source: str) -> None:
    from peft import set_peft_model_state_dict

    # With bias="all" PEFT saves a head's bias three times, the untrained one among them, and may load that one last.
    tensors = {key: t for key, t in tensors.items() if not any(part in key for part in _PARTS_OF_A_WRAPPER)}
    result = set_peft_model_state_dict(peft_model, tensors, adapter_name=ADAPTER)
    # A prompt's embedding is loaded by its encoder; to the model its key is unexpected.
    lost = [key for key in result.unexpected_keys if key != "prompt_embeddings"]
    if lost:
        raise KeyMismatchError(f"{source}: unexpected: {'; '.join(lost[:5])}; PEFT found no place for them")
    peft_model.base_model.requires_grad_(False)


def _without_patterns(checkpoint: Checkpoint, model: torch.nn.Module) -> dict[str, Any]:
    """The config with its patterns of modules resolved to the modules' names.

    PEFT matches without a time limit, and the patterns come from strangers; some take longer than anybody waits.

    Raises:
        UnsupportedAdapterError: a pattern matches nothing, isn't one or takes too long, or repeats a group where only
            PEFT can resolve it.
    """
    config = dict(checkpoint.config)
    names = [name for name, _ in model.named_modules() if name]
    for field in _PATTERNS:
        pattern = config.get(field)
        if not isinstance(pattern, str) or pattern in _SHORTHANDS or checkpoint.peft_type in _PLAIN_TEXT:
            continue
        config[field] = [name for name in names if is_target({"target_modules": pattern}, name)]
        if not config[field] and field == "target_modules":
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: PEFT can't put this {checkpoint.peft_type} adapter into the backbone: "
                f"target_modules={pattern!r} matches none of its modules"
            )
    for field in _LEFT_TO_PEFT:
        left = _listed(config.get(field) or ())
        if len(left) > MOST_PATTERNS:
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: {field} in its config has {len(left):,} names or patterns; expected at most "
                f"{MOST_PATTERNS:,}, since PEFT compiles each for each module"
            )
        for pattern in left:
            if _REPEATED_GROUP.search(str(pattern)) or len(_REPETITION.findall(str(pattern))) > _MOST_REPETITIONS:
                raise UnsupportedAdapterError(
                    f"{checkpoint.source}: the pattern {str(pattern)[:80]!r} repeats a group, or much else, which may "
                    "take forever to match; write the modules' names out in the adapter's config"
                )
    return config


def _listed(value: Any) -> list[Any]:
    """A field's names and patterns; what isn't any is for PEFT to refuse."""
    return [value] if isinstance(value, str) else list(value) if isinstance(value, (list, Mapping)) else []


@contextmanager
def peft_errors(checkpoint: Checkpoint) -> Iterator[None]:
    """PEFT's refusals as the loader's, and torch's, of indices that lie outside of a weight."""
    try:
        with torch.sparse.check_sparse_tensor_invariants():
            yield
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, ImportError) as error:
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: PEFT can't put this {checkpoint.peft_type} adapter into the backbone: "
            f"{first_line(error)}"
        ) from error
