"""What a backbone offers to adapters: its linear-like modules and its embeddings, by path, with their sizes."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorary.hub.errors import UsageError


@dataclass(frozen=True)
class LinearShape:
    """The sizes of a module that maps ``[..., inputs]`` to ``[..., outputs]``, and how its parameters are laid out.

    ``transposed``: unquantized, the weight is [inputs, outputs], as in GPT-2's ``Conv1D`` and in an embedding.
    ``embedding``: the module looks its ``inputs`` up by their ids, [...] to [..., outputs].
    """

    inputs: int
    outputs: int
    bias: bool = False
    transposed: bool = False
    embedding: bool = False

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The shapes that the module's parameters have where they aren't quantized."""
        weight = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        return {"weight": weight} | ({"bias": (self.outputs,)} if self.bias else {})


@dataclass(frozen=True)
class ModuleMap:
    """A backbone's modules by path.

    ``body_prefix`` is the body's own path in the model, with a dot (empty where the model is the body itself).
    ``weighted`` are those of the others that have parameters of their own, as norms do. ``random`` are the modules
    whose parameters the base's files lack, so that they differ from load to load.
    """

    linears: Mapping[str, LinearShape]
    embeddings: Mapping[str, LinearShape]
    others: frozenset[str]
    body_prefix: str
    weighted: frozenset[str] = frozenset()
    random: frozenset[str] = frozenset()

    def __contains__(self, path: str) -> bool:
        return path in self.linears or path in self.embeddings or path in self.others

    def site(self, path: str) -> LinearShape | None:
        """The sizes of a module that LoRA can act on, None for any other."""
        return self.linears.get(path) or self.embeddings.get(path)


def map_modules(model: Any, body: Any, random_parameters: Collection[str] = ()) -> ModuleMap:
    """The map of ``model``, whose body (without the task head) is ``body``."""
    linears: dict[str, LinearShape] = {}
    embeddings: dict[str, LinearShape] = {}
    others: set[str] = set()
    weighted: set[str] = set()
    prefix = ""
    for path, module in model.named_modules():
        if module is body and path:
            prefix = f"{path}."
        shape = linear_shape(module)
        if shape is not None:
            linears[path] = shape
        elif isinstance(module, torch.nn.Embedding):
            sizes = module.num_embeddings, module.embedding_dim
            embeddings[path] = LinearShape(*sizes, transposed=True, embedding=True)
        elif path:
            others.add(path)
            if any(True for _ in module.parameters(recurse=False)):
                weighted.add(path)
    random = frozenset(name.rpartition(".")[0] for name in random_parameters)
    return ModuleMap(linears, embeddings, frozenset(others), prefix, frozenset(weighted), random)


def linear_shape(module: torch.nn.Module) -> LinearShape | None:
    """The sizes of a linear-like module (``nn.Linear``, GPT-2's ``Conv1D``, quantized kinds), None for any other."""
    if is_router(module):
        return None
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inputs, int) and isinstance(outputs, int):
        # transformers notes the class that a quantized module took the place of.
        transposed = _is_conv1d(getattr(module, "source_cls", type(module)))
        return LinearShape(inputs, outputs, getattr(module, "bias", None) is not None, transposed)
    if _is_conv1d(type(module)) and isinstance(getattr(module, "nx", None), int):
        return LinearShape(int(module.nx), int(module.nf), bias=True, transposed=True)  # type: ignore[arg-type]
    return None


def _is_conv1d(kind: type) -> bool:
    """By all its classes' names: a module that is cut up among processes has one of its own."""
    return any(base.__name__ == "Conv1D" for base in kind.__mro__)


def is_router(module: torch.nn.Module) -> bool:
    """Is a module linear by its class alone? Phi-MoE's and Llama 4's routers are, and return a choice of experts."""
    return isinstance(module, torch.nn.Linear) and type(module).__name__.endswith("Router")


def output_scale(module: Any, shape: LinearShape) -> float:
    """What a module multiplies its output by, and an adapter's part with it: Gemma's and BART's embeddings do."""
    scale = getattr(module, "embed_scale", None) if shape.embedding else None
    return 1.0 if scale is None else float(torch.as_tensor(scale).to(module.weight.dtype))


def demand_bare(model: torch.nn.Module) -> None:
    """Refuse a model that already carries adapters: it would pass for the bare base, whose fingerprint it has.

    Raises:
        UsageError: PEFT's layers are in it.
    """
    for path, module in model.named_modules():
        if hasattr(module, "lora_A"):
            raise UsageError(
                f"the model already carries an adapter at {path!r}; take it off first (PEFT: model.unload()), "
                "or load the base anew"
            )


def demand_embedding(model: Any) -> None:
    """Refuse a model without one embedding of token ids: what it is told, and how many ids there are, is unknown.

    Raises:
        UsageError: it has none, as CANINE, which hashes characters.
    """
    with contextlib.suppress(NotImplementedError, AttributeError):
        if isinstance(getattr(model.get_input_embeddings(), "weight", None), torch.Tensor):
            return
    raise UsageError(
        f"{type(model).__name__} has no embedding of token ids, which a backbone was expected to have; "
        "open a base that reads tokens"
    )


def serialise_changing_rope(body: Any) -> None:
    """Let one thread at a time run the forward of a body whose rotary embedding rewrites its buffers by length.

    Each begins from the first length's frequencies: those of dynamic scaling stay as long as the longest row before.
    """
    config = body.config.get_text_config() if hasattr(body.config, "get_text_config") else body.config
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "dynamic" not in str(settings) and "longrope" not in str(settings):
        return
    lock, forward = threading.RLock(), body.forward
    growing: list[Any] = [module for module in body.modules() if hasattr(module, "max_seq_len_cached")]

    @functools.wraps(forward)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            for rotary in growing:
                if rotary.max_seq_len_cached > rotary.original_max_seq_len:
                    rotary.inv_freq = rotary.original_inv_freq.to(rotary.inv_freq.device)
                    rotary.max_seq_len_cached = rotary.original_max_seq_len
            return forward(*args, **kwargs)

    setattr(locked, "eager", forward)  # noqa: B010 - as a compiled forward has it; a function's type knows no attributes
    body.forward = locked
