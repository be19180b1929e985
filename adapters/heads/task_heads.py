"""Task heads around one shared body: transformers' own head classes, with only the head's weights of their own.

A task model is built without memory (on the meta device), its body is replaced by the shared one, and the head's
parameters come from the adapter. Several heads can then read one pass of the body.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from lorary.adapters.heads.left_out import leave_out, parts_left_out
from lorary.adapters.heads.numbers import answer_in_float32
from lorary.adapters.heads.of_base import HeadsOfBase
from lorary.adapters.heads.spread import bring_answers
from lorary.hub.errors import KeyMismatchError, UnsupportedAdapterError

TASK_CLASSES: Mapping[str, str] = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}
"""The transformers classes whose heads an adapter brings with it."""

LABELLED = ("text-classification", "token-classification")
"""The tasks whose heads answer with named labels."""

_BODY_OUTPUT: ContextVar[Any] = ContextVar("lorary_body_output", default=None)


class SharedBody(torch.nn.Module):
    """Stands where a task model keeps its body: answers with the pass already made, else runs the shared body."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self._body = (body,)  # in a tuple, so that it isn't a submodule: the head doesn't own the body's parameters
        self.config = body.config

    @property
    def shared(self) -> torch.nn.Module:
        """The shared body."""
        return self._body[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the body returns for these arguments."""
        made = _BODY_OUTPUT.get()
        return made if made is not None else self._body[0](*args, **kwargs)


ENCODER, DECODER = "encoder", "decoder"
"""The parts of a body that task models may take apart, by transformers' names for them."""


@dataclass(frozen=True)
class Parts:
    """A pass of a body that was made part by part: each part's output, by its name."""

    outputs: Mapping[str, Any]


class SharedPart(torch.nn.Module):
    """Stands where a task model keeps a part of its body: answers with that part's pass, else runs the shared part."""

    def __init__(self, name: str, part: torch.nn.Module) -> None:
        super().__init__()
        self._name, self._part = name, (part,)  # in a tuple, as in SharedBody

    @property
    def shared(self) -> torch.nn.Module:
        """The shared part."""
        return self._part[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the part returns for these arguments."""
        made = _BODY_OUTPUT.get()
        return made.outputs[self._name] if isinstance(made, Parts) else self._part[0](*args, **kwargs)


def in_parts(body: Any) -> bool:
    """Is the body an encoder-decoder that task models take apart (T5's)? It may be its own language model too."""
    starts_its_decoder = hasattr(body, "_shift_right")  # as T5's classes do where a call doesn't say what it reads
    return bool(body.config.is_encoder_decoder) and starts_its_decoder and hasattr(body, DECODER)


@contextmanager
def body_output(output: Any) -> Iterator[None]:
    """Within the block, task models read ``output`` instead of running the body."""
    token = _BODY_OUTPUT.set(output)
    try:
        yield
    finally:
        _BODY_OUTPUT.reset(token)


class TaskHead:
    """One adapter's task model.

    ``model`` is transformers' task model around the shared body; ``reads_body_output`` says whether it can read a pass
    of the body that was made for many heads at once, ``reads_decoder`` whether it then needs a parted body's decoder.
    ``tokenwise``: it makes something of each token alone, so it can be asked about some of them. ``own`` are the
    adapter's own tensors in it; all of its parameters unless given.
    """

    def __init__(
        self,
        model: Any,
        reads_body_output: bool,
        *,
        tokenwise: bool = False,
        own: Sequence[torch.Tensor] | None = None,
    ) -> None:
        self.model = model
        self.reads_body_output = reads_body_output
        self.tokenwise = tokenwise
        self.nbytes = sum(tensor.nbytes for tensor in (model.parameters() if own is None else own))
        self.reads_decoder = any(
            isinstance(module, SharedPart) and name.endswith(DECODER) for name, module in model.named_modules()
        )


def empty_head(
    body: Any,
    task: str,
    *,
    source: str,
    labels: Sequence[str],
    problem_type: str | None,
    pad_token: int,
) -> Any:
    """transformers' task model for a body of this architecture, without memory: all of it on the meta device.

    Raises:
        UnsupportedAdapterError: transformers has no such head for the architecture, or one that reads what the
            backbone's body doesn't have.
    """
    import transformers

    config = copy.deepcopy(body.config)
    _put_labels(config, labels, problem_type)
    config.pad_token_id = pad_token  # a classifier on a decoder looks for the last token that isn't padding
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the body is quantized already, the head never is
    auto_class = getattr(transformers, TASK_CLASSES[task])
    try:
        with torch.device("meta"):
            # Of no dtype: any would be the whole process's default while the model is built. Its own tensors follow.
            model = auto_class.from_config(config, dtype=None)
    except ValueError as error:
        raise UnsupportedAdapterError(
            f"{source}: transformers has no {task} head for the architecture {config.model_type!r}"
        ) from error
    for said in (model.config, *(getattr(model.config, part) for part in model.config.sub_configs)):
        if said is not None:
            said.dtype = body.config.dtype
    own = getattr(model, model.base_model_prefix, None)
    if _is_of(own, body) and (lacking := _only_in(own, body)):
        raise UnsupportedAdapterError(
            f"{source}: {type(model).__name__} reads the {', '.join(sorted(lacking))} of its body, and "
            f"{type(body).__name__} is served without; train on this base for another task"
        )
    return model


def copy_empty_head(model: Any, body: Any, labels: Sequence[str], problem_type: str | None) -> Any:
    """An :func:`empty_head` again, with as many labels of other names, in a fraction of the time.

    Both have the same empty body, which nobody reads: the shared one takes its place in each.
    """
    own = _unread_body(model, body)
    made = copy.deepcopy(model, {id(own): own} if own is not None else None)
    _put_labels(made.config, labels, problem_type)
    return made


def share_empty_body(model: Any, other: Any, body: Any) -> None:
    """Let an :func:`empty_head` have the empty body of another for its task: it is most of what either keeps."""
    own = _unread_body(other, body)
    if own is not None:
        setattr(model, model.base_model_prefix, own)


def _unread_body(model: Any, body: Any) -> Any:
    """An empty task model's own body, None where the shared one can't take its place as a whole."""
    own = getattr(model, model.base_model_prefix, None)
    return own if _is_of(own, body) and not in_parts(body) else None


def _put_labels(config: Any, labels: Sequence[str], problem_type: str | None) -> None:
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    config.problem_type = problem_type


def _is_of(own: Any, body: Any) -> bool:
    """Is a task model's own body one that the shared one can stand for as it is?"""
    return own is not None and type(own) is type(body)


def _only_in(own: Any, body: Any) -> set[str]:
    """The children that a task model's own body has and the backbone's body lacks."""
    return {name for name, _ in own.named_children() if getattr(body, name, None) is None}


def fill_head(
    model: Any,
    body: Any,
    tensors: Mapping[str, torch.Tensor],
    *,
    source: str,
    device: torch.device,
    dtype: torch.dtype,
    of_base: HeadsOfBase,
    shared: bool = True,
) -> TaskHead:
    """Put the body into an empty task model, and an adapter's ``tensors`` (by name there) into its head.

    What the adapter's file has no part of may be the base's own, ``of_base``. Where the body isn't ``shared``, the task
    model holds it as its own, under its name. The head is of ``dtype``, but for the layer that numbers come from
    (:mod:`lorary.adapters.heads.numbers`).

    Raises:
        KeyMismatchError: the head needs a tensor that the checkpoint lacks, or has one that it doesn't need.
    """
    exact = answer_in_float32(model)
    reads_body_output = _share_body(model, body, shared)
    if len({parameter.device for parameter in body.parameters()}) > 1:
        bring_answers(_answering(model, body), device)
    lacking = {name for name, parameter in model.named_parameters() if parameter.is_meta} - tensors.keys()
    if lacking:
        tensors = {**tensors, **of_base.tensors(type(model), lacking)}
    dtypes = {name: torch.float32 if name.rpartition(".")[0] == exact else dtype for name in tensors}
    _fill(model, {name: tensor.to(device=device, dtype=dtypes[name]) for name, tensor in tensors.items()}, source)
    model.eval()
    model.requires_grad_(False)
    return TaskHead(model, reads_body_output)


def count_labels(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many labels a checkpoint without a manifest has: the outputs of its head's last layer, by its shape.

    Where PEFT's ``all-linear`` reached the head, the file has factors of that layer in its place. Two, transformers'
    own default, where no last layer is known by name; the head's shapes are checked in any case.
    """
    # Without the body's layers, which have numbers: many an attention has an `out_proj` too.
    beside = {name: shape for name, shape in shapes.items() if not any(part.isdigit() for part in name.split("."))}
    for kind in ("weight", "lora_B.weight"):
        for layer in ("out_proj", "classifier", "score", "logits_proj", "linear_out", "qa_outputs"):
            for name, shape in beside.items():
                if name.endswith(f".{layer}.{kind}") and len(shape) == 2:
                    return shape[0]
    return 2


def _share_body(model: Any, body: Any, shared: bool) -> bool:
    """Put the body into the task model; True where the model can read a pass that was made without it."""
    attribute = model.base_model_prefix
    own = getattr(model, attribute, None)
    parted = shared and in_parts(body)
    if _is_of(own, body) and not parted:
        if not shared:
            leave_out(parts_left_out(own, body), body)
        setattr(model, attribute, SharedBody(body) if shared else body)
        return shared
    # T5's heads keep parts of the body (an encoder, a decoder, an embedding) under the names that the body gives them.
    holder = model if own is None else own
    for name, child in list(holder.named_children()):
        part = getattr(body, name, None)
        if isinstance(part, torch.nn.Module) and type(part) is type(child):
            setattr(holder, name, SharedPart(name, part) if parted and name in (ENCODER, DECODER) else part)
    return any(isinstance(module, SharedPart) for module in holder.children())


def _answering(model: Any, body: Any) -> list[torch.nn.Module]:
    """What answers a task model's head: the body or its parts, or what stands where they were."""
    stand_ins: list[torch.nn.Module] = [
        module for module in model.modules() if isinstance(module, (SharedBody, SharedPart))
    ]
    holder = getattr(model, model.base_model_prefix, model)
    parts = (holder,) if holder is body else (getattr(holder, ENCODER, None), getattr(holder, DECODER, None))
    return stand_ins or [part for part in parts if part is not None]


def _fill(model: Any, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Give the head its parameters, all of them and no others."""
    wanted = {name: parameter for name, parameter in model.named_parameters() if parameter.is_meta}
    problems = [f"missing: {name}" for name in sorted(wanted.keys() - tensors.keys())]
    problems += [f"unexpected: {name}" for name in sorted(tensors.keys() - wanted.keys())]
    problems += [
        f"{name} is {list(tensors[name].shape)}, the head needs {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & tensors.keys())
        if tensors[name].shape != wanted[name].shape
    ]
    problems += [f"{name} is empty" for name in sorted(tensors.keys() & wanted) if not tensors[name].numel()]
    if problems:
        raise KeyMismatchError(
            f"{source}: its head doesn't fit {type(model).__name__}. {'; '.join(problems)}. "
            "A head layer that was neither in modules_to_save nor in the base's files was random in training and is "
            "lost; train again with it in modules_to_save"
        )
    model.load_state_dict(dict(tensors), strict=False, assign=True)
