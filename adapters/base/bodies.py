"""Where a task model keeps its body, and the body as a model of its own where a class has taken it apart."""

from __future__ import annotations

from typing import Any

import torch

from lorary.adapters.base.identity import body_of


def bare_body(model: Any) -> Any:
    """The model without its task head, a model of its own in any case.

    T5's class for question answering keeps the body's parts beside its head; they are put into transformers' bare class
    then.
    """
    body, parts = body_of(model), parts_of_body(model)
    if body is not model or parts == {name for name, _ in model.named_children()}:
        return body
    bare = _empty_bare(model)
    for name in parts:
        setattr(bare, name, getattr(model, name))
    bare.config = model.config
    return bare.eval()


def parts_of_body(model: Any) -> frozenset[str]:
    """The names of the children that make up a task model's body: one, or those that transformers' bare class has."""
    body, children = body_of(model), dict(model.named_children())
    if body is not model:
        return frozenset(name for name, child in children.items() if child is body)
    bare = _empty_bare(model)
    return frozenset(children if bare is None else children.keys() & {name for name, _ in bare.named_children()})


def _empty_bare(model: Any) -> Any:
    """transformers' bare model for the model's config, without memory; None where the model is its own body."""
    from transformers import AutoModel

    bare_class = AutoModel._model_mapping.get(type(model.config), None)
    if bare_class is None or isinstance(model, bare_class) or model.can_generate():
        return None
    with torch.device("meta"):
        return AutoModel.from_config(model.config)
