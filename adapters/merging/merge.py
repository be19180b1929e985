"""A merged model: the backbone's weights with one adapter folded in, in a folder that transformers loads by itself.

The update goes into the weights that the backbone computes with, dequantized: merged into the full-precision weights
instead, an adapter trained on nf4 meets other weights than those it corrects.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorary.adapters.base.device import dtype_name, pick_dtype
from lorary.adapters.base.loading import quietly
from lorary.adapters.base.modules import ModuleMap
from lorary.adapters.base.quantization import QUANTIZATIONS, READ_BY_MODELS
from lorary.adapters.heads.numbers import number_layer
from lorary.adapters.layer.routing import Routing
from lorary.adapters.layer.slots import LowRank
from lorary.adapters.merging.card import write_card
from lorary.adapters.merging.check import Answers, Merged, Precision, check_merged
from lorary.adapters.merging.weights import Changes, demand_biases, find_places, merged_tensors, splits_a_tie
from lorary.adapters.running.inference import Inference
from lorary.adapters.values import MergedModel
from lorary.hub.errors import MergeError
from lorary.hub.files.folders import new_folder
from lorary.hub.manifest import BaseIdentity, Numerics

_SHARD = "5GB"
_ROUNDS = (
    "answers with numbers: their layer is float32 in the file, but transformers loads it in {0} with the rest, which "
    "rounds the answers; load the model with dtype=torch.float32"
)


@dataclass(frozen=True)
class Target:
    """Where a merged model goes, what it is made from, and the dtype of its weights (None: the backbone's)."""

    folder: Path
    base: BaseIdentity
    numerics: Numerics
    dtype: str | torch.dtype | None


def write_merged(
    inference: Inference, routing: Routing, factors: Mapping[str, LowRank], modules: ModuleMap, into: Target
) -> MergedModel:
    """Write the model that the one adapter of ``routing``, with these ``factors`` by site, makes of its backbone.

    Raises as :meth:`lorary.adapters.Backbone.merge` does.
    """
    adapter = routing.adapters[0]
    assert adapter is not None
    root = adapter.head.model if adapter.head else inference.model
    acting = {path: weights for path, weights in factors.items() if path.rpartition(".")[2] not in READ_BY_MODELS}
    changes = Changes(acting, adapter.overrides, modules)
    without = routing.without_updates()
    answers = Answers(lambda row: inference.logits(row, routing), lambda row: inference.logits(row, without))
    return write_checked(adapter, inference, answers, into, lambda dtype: merged_model(root, changes, dtype))


def write_checked(
    adapter: Merged, inference: Inference, answers: Answers, into: Target, merge: Callable[[torch.dtype], Any]
) -> MergedModel:
    """Write what ``merge`` makes of the adapter in a dtype, a transformers model; kept only if it answers like it.

    Raises as :meth:`lorary.adapters.Backbone.merge` does.
    """
    started = time.perf_counter()
    numerics = into.numerics
    if numerics.quantization not in QUANTIZATIONS:
        raise MergeError(
            f"weights quantized with {numerics.quantization!r} can't be read as numbers; expected "
            f"{', '.join(QUANTIZATIONS)}. Open the base in full precision and merge there"
        )
    served = pick_dtype(inference.device, numerics.dtype)
    chosen = pick_dtype(inference.device, into.dtype) if into.dtype is not None else served
    with new_folder(into.folder) as draft:
        model = merge(chosen)
        kind = type(model)
        rounds = number_layer(model) is not None and chosen != torch.float32
        with quietly():
            model.save_pretrained(draft, max_shard_size=_SHARD)
        del model
        tokenizer = inference.tokenizer_of(adapter)
        if tokenizer is not None:
            _own_tokenizer(tokenizer, adapter).save_pretrained(draft)
        precision = Precision(served, chosen, numerics.quantization)
        difference = check_merged(draft, kind, precision, inference, adapter, answers)
        merged = MergedModel(
            folder=str(into.folder),
            adapter=adapter.name,
            digest=adapter.digest,
            model_class=kind.__name__,
            dtype=dtype_name(chosen),
            difference=difference,
            notes=(*_notes(adapter, numerics), *((_ROUNDS.format(dtype_name(chosen)),) if rounds else ())),
            seconds=time.perf_counter() - started,
        )
        write_card(draft, merged, adapter, into.base, numerics.quantization)
    return merged


def merged_model(root: Any, changes: Changes, dtype: torch.dtype) -> Any:
    """A copy of ``root`` on the CPU with the changes in its weights, dequantized where they are quantized."""
    config = copy.deepcopy(root.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    empty = _empty(root, config)
    places = find_places(empty.state_dict(), root)
    demand_biases(places, changes)
    tied = not splits_a_tie(places, changes)
    if not tied:
        config.tie_word_embeddings = False
        empty = _empty(root, config)
    empty.load_state_dict(dict(merged_tensors(places, changes, dtype, tied=tied)), assign=True)
    return empty


def _empty(root: Any, config: Any) -> Any:
    """A model of the same class without memory."""
    with torch.device("meta"):
        empty = type(root)(config)
    if empty.can_generate():
        empty.generation_config = copy.deepcopy(root.generation_config)
    return empty


def _own_tokenizer(tokenizer: Any, adapter: Merged) -> Any:
    """The base's tokenizer with the adapter's chat template, without the padding that earlier calls left in it.

    What the template was told in training it says to itself, unless somebody tells it otherwise.
    """
    own = copy.deepcopy(tokenizer)
    backend = getattr(own, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    prompt = adapter.manifest.prompt if adapter.manifest else None
    if prompt is not None and prompt.chat_template:
        own.chat_template = prompt.chat_template
    if prompt is not None and prompt.chat_template_kwargs and own.chat_template:
        told, templates = prompt.chat_template_kwargs, own.chat_template
        own.chat_template = (
            {name: saying_by_default(template, told) for name, template in templates.items()}
            if isinstance(templates, dict)
            else saying_by_default(templates, told)
        )
    return own


def saying_by_default(template: str, told: Mapping[str, Any]) -> str:
    """A chat template that tells itself these variables where nobody else does, and writes the same else.

    It begins in a line of its own: transformers leaves out the end of a line behind a block, and blanks before one.
    """
    return "".join(map(_by_default, told.items())) + "\n" + template


def _by_default(variable: tuple[str, Any]) -> str:
    """A variable's value as Jinja, which writes values as Python does, sets it where it isn't set."""
    name, value = variable
    return f"{{%- if {name} is not defined %}}{{%- set {name} = {value!a} %}}{{%- endif %}}"


def _notes(adapter: Merged, numerics: Numerics) -> tuple[str, ...]:
    trained = adapter.manifest.numerics.quantization if adapter.manifest else numerics.quantization
    if trained == numerics.quantization:
        return ()
    return (
        f"trained on {trained} weights, merged into {numerics.quantization} ones; to meet the weights it was trained "
        f"on, open the base with quantization={trained!r}",
    )
