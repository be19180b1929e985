"""A base with a task's head: loaded, quantized, and what of it has to be trained whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from lorary.adapters.base.bodies import bare_body, parts_of_body
from lorary.adapters.base.identity import body_of
from lorary.adapters.base.loading import is_encoder, load_base, natural_class
from lorary.adapters.base.modules import linear_shape, map_modules
from lorary.adapters.heads.masked import lacking_in_head
from lorary.adapters.heads.task_heads import TASK_CLASSES, empty_head
from lorary.hub.base_files import resolve_base
from lorary.hub.errors import BaseNotFoundError, TrainingError, UnsupportedAdapterError, first_line
from lorary.hub.manifest import BaseIdentity
from lorary.training.recipe import Recipe
from lorary.training.tasks import Task

if TYPE_CHECKING:
    from lorary.training.model.new_tokens import Before


@dataclass(frozen=True)
class Base:
    """A base with the task's head, before the adapter.

    ``saved`` are the modules that are trained whole, ``new`` the parameters that the base's files lack, and
    ``other_shapes`` those of them that the files hold for other labels; ``files`` is the folder that it was read from.
    ``before``: what it was before it got new tokens, if it has some.
    """

    model: Any
    tokenizer: Any
    identity: BaseIdentity
    saved: tuple[str, ...]
    new: tuple[str, ...] = ()
    files: str | None = None
    before: Before | None = None
    other_shapes: tuple[str, ...] = ()

    @property
    def bare(self) -> Base:
        """The base without new tokens; its model must have been cut to its own rows again."""
        return self if self.before is None else replace(self, tokenizer=self.before.tokenizer, before=None)


def load_for(task: Task, recipe: Recipe) -> Base:
    """Load a recipe's base with the task's head; the seed is set before the head is made.

    Raises:
        BaseNotFoundError: no such base, or it has no tokenizer.
        TrainingError: the base's own files lack parts that can't be trained in, or it is of the wrong kind.
    """
    from transformers import set_seed

    auto_class = task.auto_class()
    _look_at_config(task, recipe)
    # A masked language model's own head too: whatever the family calls it, it is served from the files as they are.
    whole = (task.new_head or task.masks) and recipe.quantization != "none"
    head = _head_names(recipe, auto_class) if whole else ()
    set_seed(recipe.training.seed)
    loaded = load_base(
        recipe.base,
        auto_class=auto_class,
        quantization=recipe.base_quantization,
        dtype=recipe.dtype,
        device=recipe.device,
        device_map=recipe.device_map,
        revision=recipe.revision,
        skip_modules=head,
        **task.model_kwargs(),
    )
    if loaded.tokenizer is None:
        raise BaseNotFoundError(f"base {recipe.base!r} has no tokenizer; expected its files beside the weights")
    task.check_base(loaded.model)
    _demand_served(loaded.model, task, recipe)
    own = _own_head(loaded.model, loaded.new_parameters, task, recipe) if not task.new_head and not task.bare else ()
    if recipe.training.classifier_dropout is not None:
        _set_head_dropout(loaded.model, recipe.training.classifier_dropout)
    head_of_task = head_modules(loaded.model) if task.new_head else own
    saved = (*head_of_task, *_new_in_body(loaded.model, loaded.new_parameters))
    return Base(
        loaded.model, loaded.tokenizer, loaded.identity, saved, loaded.new_parameters, loaded.files,
        other_shapes=loaded.other_shapes,
    )  # fmt: skip


_served: set[tuple[str, type, str]] = set()
"""Tasks and configs that are known to be served: a process trains on the same base again and again."""


def _demand_served(model: Any, task: Task, recipe: Recipe) -> None:
    """Refuse a class whose body has a part that a backbone is served without, such as NomicBERT's classifier a pooler.

    Raises:
        TrainingError: it has one.
    """
    if not (task.name in TASK_CLASSES and is_encoder(model.config)):
        return
    asked = task.name, type(model.config), model.config.to_json_string(use_diff=False)
    if asked in _served:
        return
    with torch.device("meta"):
        served = bare_body(natural_class(model.config).from_config(model.config))
    try:
        empty_head(served, task.name, source=f"base {recipe.base!r}", labels=("0", "1"), problem_type=None, pad_token=0)
    except UnsupportedAdapterError as error:
        raise TrainingError(str(error)) from error
    _served.add(asked)


def reseed(base: Base, seed: int) -> None:
    """Draw the parameters that the base's files lack again, as loading the base with this seed would have."""
    from transformers import set_seed

    # transformers' own marks of what was read from a file, by which it leaves that alone. Some families draw a layer of
    # a head with the module that has it (T5, ModernBERT), so that isn't done with either.
    new = set(base.new)
    for name, parameter in base.model.named_parameters(remove_duplicate=False):
        parameter._is_hf_initialized = name not in new
    for path, module in base.model.named_modules():
        if any(not path or name.startswith(f"{path}.") for name in new):
            module._is_hf_initialized = False
    set_seed(seed)
    base.model.initialize_weights()


def _look_at_config(task: Task, recipe: Recipe) -> None:
    """Refuse a base of the wrong kind before its weights are read. Raises as :func:`refuse_other_kinds`."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(resolve_base(recipe.base, revision=recipe.revision).path)
    except (OSError, ValueError):
        return  # what is wrong with it is said where it is loaded
    refuse_other_kinds(task, recipe, config)


def refuse_other_kinds(task: Task, recipe: Recipe, config: Any) -> None:
    """Is a base of this transformers ``config`` one that the task can be trained on?

    Raises:
        TrainingError: it has no head of the task's kind, or transformers has no class for it.
    """
    from transformers import AutoModelForCausalLM

    if task.bare:
        return
    auto_class = task.auto_class()
    if task.masks and (not is_encoder(config) or _masked_class(config) is None):
        raise TrainingError(
            f"base {recipe.base!r} ({config.model_type}) can't fill masks; choose a masked language model (BERT and "
            "its kin) or an encoder-decoder (T5, BART), or task text-generation"
        )
    if not task.new_head and not task.masks and is_encoder(config):
        raise TrainingError(f"base {recipe.base!r} is an encoder, which can't generate; choose a language model")
    if auto_class is AutoModelForCausalLM and config.is_encoder_decoder:
        raise TrainingError(
            f"base {recipe.base!r} ({config.model_type}) is an encoder-decoder, which isn't trained for {task.name}; "
            "use task summarization or translation (fill-mask for running text), or choose a causal model (GPT-2, "
            "Llama and their kin)"
        )
    if type(config) not in auto_class._model_mapping:
        raise TrainingError(
            f"base {recipe.base!r} can't be trained for {task.name}: transformers has no such class for "
            f"{config.model_type!r} models ({auto_class.__name__}); choose a base of another architecture"
        )


def _masked_class(config: Any) -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    name: str | None = MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(config.model_type)
    return name


def _own_head(model: Any, new_parameters: Sequence[str], task: Task, recipe: Recipe) -> tuple[str, ...]:
    """The modules of the base's own head that its files lack, by their paths, to be trained whole with the adapter.

    The head that the files hold is served to all adapters of the base. A masked language model's may be trained where
    they lack it, since it is small: its output layer is tied to the embeddings.

    Raises:
        TrainingError: they lack another head, or one that isn't tied.
    """
    prefix = map_modules(model, body_of(model)).body_prefix
    lacking = [name for name in new_parameters if not (prefix and name.startswith(prefix))]
    if not lacking:
        return ()
    output = model.get_output_embeddings()
    tied = output is not None and output.weight is model.get_input_embeddings().weight
    if task.masks and tied and recipe.quantization == "none":
        trained, new = lacking_in_head(model, lacking), set(new_parameters)
        return tuple(dict.fromkeys(_topmost_new(model, name, new, "") for name in trained))
    if task.masks and tied:
        raise TrainingError(
            f"base {recipe.base!r}: its files hold no {task.name} head, and a new one is trained on an unquantized "
            "base only; leave quantization out, or use method: lora"
        )
    raise TrainingError(
        f"base {recipe.base!r}: its files hold no {task.name} head ({', '.join(lacking[:3])} ...), and adapters "
        "share the base's own; choose a base that was published with it, or make one with `lorary pretrain`"
    )


def _set_head_dropout(model: Any, share: float) -> None:
    """Set every dropout that stands beside the body; families keep it under names of their own in their configs.

    Raises:
        TrainingError: the head has none.
    """
    body = parts_of_body(model)
    beside = [child for name, child in model.named_children() if name not in body]
    dropouts = [part for child in beside for part in child.modules() if isinstance(part, torch.nn.Dropout)]
    if not dropouts:
        raise TrainingError(
            f"{type(model).__name__} has no dropout in its head; leave training.classifier_dropout out "
            "(lora.dropout is the adapter's)"
        )
    for dropout in dropouts:
        dropout.p = share


def head_modules(model: Any) -> tuple[str, ...]:
    """The children with parameters that stand beside the body: classifier, score, DistilBERT's pre_classifier."""
    body = parts_of_body(model)
    return tuple(
        name for name, child in model.named_children() if name not in body and any(True for _ in child.parameters())
    )


def _head_names(recipe: Recipe, auto_class: Any) -> tuple[str, ...]:
    """The head's names before anything is loaded, from an empty model: they have to be kept from quantization."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(resolve_base(recipe.base, revision=recipe.revision).path)
        with torch.device("meta"):
            return head_modules(auto_class.from_config(config))
    except (OSError, ValueError) as error:
        raise BaseNotFoundError(f"base {recipe.base!r} can't be loaded as a model: {first_line(error)}") from error


def _new_in_body(model: Any, new_parameters: Sequence[str]) -> tuple[str, ...]:
    """Modules of the body that the base's files don't hold (a pooler, mostly): random, so they are trained and saved.

    Raises:
        TrainingError: one of them isn't made of linear layers, or has no name of its own.
    """
    body = body_of(model)
    prefix = map_modules(model, body).body_prefix
    new = [name for name in new_parameters if name.startswith(prefix)] if prefix else []
    names = set()
    for parameter in new:
        path = _topmost_new(model, parameter, set(new_parameters), prefix)
        module, last = model.get_submodule(path), path.rpartition(".")[2]
        plain = all(
            linear_shape(part) for part in module.modules() if any(True for _ in part.parameters(recurse=False))
        )
        others = [name for name, _ in body.named_modules() if name.rpartition(".")[2] == last]
        if not plain or len(others) > 1:
            raise TrainingError(
                f"the base's files hold no {parameter!r}, so it would stay random, and it can't be trained with the "
                "adapter; choose a base that has it"
            )
        names.add(last)
    return tuple(sorted(names))


def _topmost_new(model: Any, parameter: str, new: set[str], prefix: str) -> str:
    """The path of the largest module around ``parameter`` of which every parameter is new."""
    path = parameter.rpartition(".")[0]
    while (above := path.rpartition(".")[0]) and above.startswith(prefix):
        if any(f"{above}.{name}" not in new for name, _ in model.get_submodule(above).named_parameters()):
            break
        path = above
    return path
