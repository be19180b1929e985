"""The masked-language-modelling head: the base's own, one for all fill-mask adapters.

An encoder is served as a bare body, so the head is read from the base's files when an adapter first asks for it. An
adapter that was trained in the head too (PEFT's ``all-linear`` reaches its dense layer) gets its own view of it: the
same tensors but for those that it changed. Where the base's files have no such head (sentence encoders, mostly), each
adapter brings one: a dense layer and a norm, before an output layer that is tied to the embeddings.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorary.adapters.base.identity import body_of, fingerprint_model
from lorary.adapters.base.loading import quietly
from lorary.adapters.base.modules import LinearShape, linear_shape
from lorary.adapters.heads.left_out import parts_left_out
from lorary.adapters.heads.task_heads import SharedBody, TaskHead
from lorary.adapters.layer.slots import LowRank
from lorary.hub.base_files import resolve_base
from lorary.hub.errors import KeyMismatchError, UnsupportedAdapterError

_INSTEAD = "open a base that was published as a masked language model"


@dataclass(frozen=True)
class MaskedModel:
    """transformers' masked language model around the shared body.

    ``offered`` names all of its modules as its class does, the body's among them, and ``linears`` the head's own linear
    ones; None and empty where the backbone's own model is this one (BART), whose modules it knows. ``lacking`` are the
    parameters of the head that the base's files don't hold, so that an adapter has to bring them, and ``left_out`` the
    parts of the backbone's body that the class is made without.
    """

    model: Any
    offered: frozenset[str] | None
    linears: Mapping[str, LinearShape]
    lacking: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()

    def demand(self, brought: Collection[str], source: str) -> None:
        """Are the parameters that the base lacks among those that an adapter brings?

        Raises:
            UnsupportedAdapterError: they aren't.
        """
        if lacking := sorted(self.lacking - set(brought)):
            raise UnsupportedAdapterError(
                f"{source}: fill-mask needs the base's own masked-language-modelling head, which its files lack "
                f"({', '.join(lacking)}), or one that was trained with the adapter; {_INSTEAD}"
            )

    def around(self, body: Any) -> Any:
        """The model once more over the same memory, with ``body``, the shared one or a mirror of it, as its own."""
        memo: dict[int, Any] = {}
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            plain = type(tensor) is torch.nn.Parameter
            memo[id(tensor)] = torch.nn.Parameter(tensor.detach(), requires_grad=False) if plain else tensor
        for module in self.model.modules():
            if isinstance(module, SharedBody):
                shared: Any = module.shared
                memo[id(module)] = body
                memo[id(shared.get_input_embeddings().weight)] = body.get_input_embeddings().weight
        return copy.deepcopy(self.model, memo)


class MaskedHead:
    """Where a backbone has its masked-language-modelling head from: the model it was given, else the base's files.

    Args:
        given: the model that the backbone was made around.
        serving: what the backbone serves, ``given`` or its body.
        body: the shared body.
        base: the base's folder or id.
        fingerprint: the backbone's, which the files' must equal; None where it has none.
    """

    def __init__(self, given: Any, serving: Any, body: Any, *, base: str, fingerprint: str | None) -> None:
        self._given, self._serving, self._body = given, serving, body
        self._base, self._fingerprint = base, fingerprint
        self._made: MaskedModel | None = None
        self._lock = threading.Lock()

    def get(self, source: str) -> MaskedModel:
        """The masked language model, made on the first call; ``source`` names the adapter in errors.

        Reading it from files takes as much memory as the base, for as long as that lasts.

        Raises:
            UnsupportedAdapterError: the architecture has no such head, or the base's files lack it.
            BaseNotFoundError: the base's files can't be found any more.
        """
        with self._lock:
            if self._made is None:
                self._made = self._make(source)
            return self._made

    def _make(self, source: str) -> MaskedModel:
        wanted = _class_name(self._body.config)
        if wanted is None:
            raise UnsupportedAdapterError(
                f"{source}: transformers has no fill-mask head for the architecture {self._body.config.model_type!r}; "
                f"{_INSTEAD}"
            )
        if type(self._serving).__name__ == wanted:
            return MaskedModel(self._serving, None, {})
        if type(self._given).__name__ == wanted:
            return _around(self._given, self._body)
        model, lacking = self._read(source)
        return replace(_around(model, self._body), lacking=lacking)

    def _read(self, source: str) -> tuple[Any, frozenset[str]]:
        """The base's files as a masked language model, and what of its head they lack."""
        from transformers import AutoModelForMaskedLM

        embedding = self._body.get_input_embeddings().weight
        with quietly():
            # Loading in another dtype would make it the whole process's default meanwhile.
            model, info = AutoModelForMaskedLM.from_pretrained(
                resolve_base(self._base).path, dtype=torch.float32, output_loading_info=True
            )
        prefix = f"{model.base_model_prefix}."
        lacking = lacking_in_head(model, [name for name in info["missing_keys"] if not name.startswith(prefix)])
        if self._fingerprint is not None and fingerprint_model(model) != self._fingerprint:
            raise UnsupportedAdapterError(
                f"{source}: the files of {self._base!r} hold another model than the backbone in memory, so its "
                "fill-mask head can't be taken from there; give Backbone.from_model the masked language model itself"
            )
        model.config.dtype = embedding.dtype
        return model.to(embedding).eval().requires_grad_(False), frozenset(lacking)


def lacking_in_head(model: Any, missing: Sequence[str]) -> list[str]:
    """The parameters of a masked language model's head that have to be trained where its files lack ``missing``.

    The output layer's bias isn't one of them: it is a bare 0 then, as BERT's own pretraining began.
    """
    output = model.get_output_embeddings()
    bias = getattr(output, "bias", None)
    own = [name for name in missing if bias is not None and model.get_parameter(name) is bias]
    if bias is not None and own:
        with torch.no_grad():
            bias.zero_()
    return sorted(set(missing) - set(own))


def _class_name(config: Any) -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    name = MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(config.model_type)
    return name if isinstance(name, str) else None


def _around(model: Any, body: Any) -> MaskedModel:
    """A view of a masked language model whose body is the shared one, and so is a tied output layer's weight."""
    own = body_of(model)
    offered = frozenset(name.replace(".base_layer", "") for name, _ in model.named_modules())
    output, embedding = model.get_output_embeddings(), own.get_input_embeddings()
    tied = output is not None and output.weight is embedding.weight
    view = copy.deepcopy(model, _kept(model) | {id(own): SharedBody(body)})
    if tied:
        view.get_output_embeddings().weight = body.get_input_embeddings().weight
    shapes = {name: linear_shape(module) for name, module in view.named_modules()}
    linears = {name: shape for name, shape in shapes.items() if shape is not None}
    return MaskedModel(view, offered, linears, left_out=parts_left_out(own, body))


def _kept(model: torch.nn.Module) -> dict[int, Any]:
    """What ``copy.deepcopy`` is to take over as it is: all tensors, and a shared body."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return tensors | {id(module): module for module in model.modules() if isinstance(module, SharedBody)}


class HeadLora(torch.nn.Module):
    """A linear module of a head with one adapter's update, beside the slots: the head runs once per adapter anyway.

    ``a`` is [rank, inputs], ``b`` [outputs, rank], ``bias`` and ``gain`` [outputs]; B and the bias carry the scale.
    """

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None
    gain: torch.Tensor | None

    def __init__(self, base_layer: Any, weights: LowRank) -> None:
        super().__init__()
        self.base_layer = base_layer
        like = base_layer.weight
        self.register_buffer("a", weights.a.clone().to(like))  # the file's own memory goes when it is closed
        self.register_buffer("b", (weights.b.float() * weights.scale).to(like))
        self.register_buffer("bias", None if weights.bias is None else (weights.bias.float() * weights.scale).to(like))
        self.register_buffer("gain", None if weights.gain is None else weights.gain.to(like))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., inputs] to [..., outputs]."""
        out: torch.Tensor = self.base_layer(x)
        if self.gain is not None:
            out = out + out * self.gain
        low = torch.nn.functional.linear(x.to(self.a.dtype), self.a)  # a layer of numbers is float32 in any body
        return out + torch.nn.functional.linear(low, self.b, self.bias)

    def merged(self, name: str) -> torch.Tensor:
        """The module's own ``weight`` or ``bias`` with the update in it, float32."""
        own: torch.Tensor = getattr(self.base_layer, name).detach().float()
        gain = torch.ones((), device=own.device) if self.gain is None else 1 + self.gain.float()
        if name == "weight":
            return own * gain.unsqueeze(-1) + self.b.float() @ self.a.float()
        return own * gain if self.bias is None else own * gain + self.bias.float()


def update_head(model: torch.nn.Module, updates: Mapping[str, LowRank]) -> None:
    """Put an adapter's ``updates`` of a head's linear modules beside these, by path."""
    for path, weights in updates.items():
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, HeadLora(model.get_submodule(path), weights))


def adapt_head(
    base: MaskedModel, updates: Mapping[str, LowRank], whole: Mapping[str, torch.Tensor], source: str
) -> TaskHead:
    """The base's head, with an adapter's ``updates`` of its linear modules and the tensors that it trained ``whole``.

    Raises:
        KeyMismatchError: the head has no such tensor, or one of another shape.
    """
    if base.offered is None:
        return TaskHead(base.model, reads_body_output=False, own=())
    if not updates and not whole:
        return TaskHead(base.model, reads_body_output=True, tokenwise=True, own=())
    model = copy.deepcopy(base.model, _kept(base.model))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in whole.items():
        own = parameters.get(name)
        if own is None or own.shape != tensor.shape:
            found = "no such tensor" if own is None else f"one of shape {list(own.shape)}"
            raise KeyMismatchError(
                f"{source}: carries {name!r} {list(tensor.shape)} of the fill-mask head, and the base's has {found}"
            )
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, torch.nn.Parameter(tensor.to(own), requires_grad=False))
    update_head(model, updates)
    shared = {id(tensor) for tensor in base.model.parameters()}
    own = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in shared]
    return TaskHead(model, reads_body_output=True, tokenwise=True, own=own)
