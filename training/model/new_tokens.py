"""New tokens: a tokenizer that knows them, an embedding that has rows for them, and both as they were before.

The rows are trained with the adapter and kept in its file, which holds no other rows of the embedding; the base's own
rows stay as they are. Tokens that fit into rows that the embedding has to spare take those.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from lorary.adapters.base.loading import quietly
from lorary.adapters.text.tokenizers import Tokenizers
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import CheckpointError, TrainingError
from lorary.training.data import Note
from lorary.training.model.base import Base
from lorary.training.recipe import Recipe


@dataclass(frozen=True)
class Before:
    """What a base was before it got the tokens in ``added``: its tokenizer, and how many rows its embedding has."""

    tokenizer: Any
    rows: int
    added: tuple[str, ...]


def with_tokens(base: Base, recipe: Recipe, parent: Checkpoint | None, note: Note) -> Base:
    """The base with those tokens that the adapter that it starts from has added, and then with the recipe's.

    Raises:
        CheckpointError: the adapter's tokenizer isn't beside it, or has other tokens.
        TrainingError: the base or that adapter has one of the recipe's already, the rows that the adapter trained are
            others', or the vocabulary can't grow.
    """
    return _add(base if parent is None else _take(base, parent, note), recipe, note)


def _add(base: Base, recipe: Recipe, note: Note) -> Base:
    if not recipe.tokens.add:
        return base
    from tokenizers import AddedToken

    tokens, tokenizer = tuple(recipe.tokens.add), copy.deepcopy(base.tokenizer)
    known = [token for token in tokens if token in tokenizer.get_vocab()]
    if known:
        theirs = base.before is not None and known[0] in base.before.added
        owner = "the adapter that is continued" if theirs else "the base"
        raise TrainingError(
            f"tokens.add: {owner} has {', '.join(map(repr, known[:5]))} already (token "
            f"{tokenizer.convert_tokens_to_ids(known[0])}); leave out what it has"
        )
    special = recipe.tokens.special
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=special) for token in tokens], special)
    if recipe.tokens.end is not None:
        tokenizer.eos_token = recipe.tokens.end
    rows = base.model.get_input_embeddings().weight.shape[0]
    spare = rows - len(base.tokenizer)
    where = "which it has to spare" if len(tokenizer) <= rows else f"beyond its {rows}"
    note(f"{len(tokens)} new tokens, trained in rows of the embedding {where}" + (f" ({spare})" if spare > 0 else ""))
    return _with(base, tokenizer, tokens)


def _take(base: Base, parent: Checkpoint, note: Note) -> Base:
    added = parent.manifest.added_tokens if parent.manifest else None
    if not added:
        return base
    own = Tokenizers(base.tokenizer, len(base.tokenizer)).of(parent, sys.maxsize)  # the embedding grows as it asks
    tokenizer = own.tokenizer if own is not None else base.tokenizer
    ids = tokenizer.convert_tokens_to_ids(list(added))
    trained = parent.config["trainable_token_indices"]
    rows = max(base.model.get_input_embeddings().weight.shape[0], ids[-1] + 1)
    if not ids[-1] < len(tokenizer) <= rows:
        raise CheckpointError(
            f"{parent.source}: its tokenizer has {len(tokenizer)} tokens, of which the last new one has the id "
            f"{ids[-1]}; its files are others than were saved"
        )
    if any(indices != ids for indices in (trained.values() if isinstance(trained, Mapping) else [trained])):
        raise TrainingError(f"{parent.source}: trained other rows than those of its new tokens; it can't be continued")
    note(f"{len(added)} tokens that the base hasn't are those of the adapter that is continued, and train on")
    return _with(base, tokenizer, added)


def _with(base: Base, tokenizer: Any, added: tuple[str, ...]) -> Base:
    rows = base.model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        resize(base.model, len(tokenizer))
    before = base.before or Before(base.tokenizer, rows, ())
    return replace(base, tokenizer=tokenizer, before=replace(before, added=(*before.added, *added)))


def without_tokens(model: Any, base: Base) -> None:
    """Cut a base's model to the rows that it had before it got tokens."""
    if base.before is not None and model.get_input_embeddings().weight.shape[0] > base.before.rows:
        resize(model, base.before.rows)


def resize(model: Any, rows: int) -> None:
    """Give a model's embedding, and its output layer, so many rows.

    Raises:
        TrainingError: transformers can't do that for this architecture.
    """
    try:
        with quietly():
            model.resize_token_embeddings(rows, mean_resizing=False)
    except (NotImplementedError, ValueError, AttributeError) as error:
        raise TrainingError(f"the vocabulary of a {type(model).__name__} can't grow: {error}") from error


def token_rows(base: Base) -> dict[str, list[int]] | None:
    """Which rows of which layers are trained for the new tokens, as PEFT's ``trainable_token_indices``."""
    if base.before is None:
        return None
    ids = base.tokenizer.convert_tokens_to_ids(list(base.before.added))
    embedding, output = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    tied = output is None or output.weight is embedding.weight
    layers = (embedding,) if tied else (embedding, output)
    return {_name(base.model, layer): ids for layer in layers}


def _name(model: torch.nn.Module, layer: torch.nn.Module) -> str:
    return next(path for path, module in model.named_modules() if module is layer).rpartition(".")[2]


def begin_rows(model: Any, base: Base) -> None:
    """Let the new rows of a fresh ``PeftModel`` begin at the mean of the base's own (Hewitt 2021).

    Source: https://nlp.stanford.edu/~johnhew/vocab-expansion.html
    """
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    if base.before is None:
        return
    # PEFT sees that the vocabulary is larger, and would keep the whole embedding in each of the run's checkpoints.
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    own = min(len(base.before.tokenizer), base.before.rows)
    for module in model.modules():
        if isinstance(module, TrainableTokensLayer) and module.tied_adapter is None:
            mean = module.base_layer.weight.detach()[:own].float().mean(dim=0)
            for rows in module.trainable_tokens_delta.values():
                rows.data.copy_(mean.expand_as(rows))
    # TRL's loss reads the output layer's weight, which PEFT's wrapper gives with the trained rows in it, and its bias.
    output = model.get_base_model().get_output_embeddings()
    if output is not None and not hasattr(output, "bias"):
        output.__dict__["bias"] = getattr(output.original_module, "bias", None)
