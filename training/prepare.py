"""A run before its first step: data, base and adapter in memory, all seeded."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lorary.adapters.base.device import dtype_name, pick_dtype
from lorary.adapters.running.inference import longest_input
from lorary.hub.errors import TrainingError
from lorary.hub.units import size
from lorary.training.data import Example, Examples
from lorary.training.distributed import ALONE, Group
from lorary.training.model import (
    Base,
    check_settings,
    initialise,
    load_for,
    ranks_as_lora,
    reseed,
    settle,
    virtual_tokens,
    with_tokens,
)
from lorary.training.progress import Reporter
from lorary.training.recipe import Recipe
from lorary.training.recipe.steps import with_enough_epochs
from lorary.training.sharding import Links, Shards, shard
from lorary.training.strategies.beginning import begin
from lorary.training.strategies.going_on import Stack
from lorary.training.strategies.parent import Parent
from lorary.training.tasks import Encoded, Task, make_task
from lorary.training.tasks.rows.lengths import fit_lengths
from lorary.training.tasks.rows.token_cache import TokenCache


@dataclass(frozen=True)
class Prepared:
    """A run before its first step: data, base and adapter in memory, all seeded.

    ``lengths``: what became of rows that are too long, by part
    (:func:`lorary.training.tasks.rows.lengths.fit_lengths`). ``parent`` is the adapter that the run starts from, and
    ``stack`` what of it acts unseen in the base. ``shards``: the base's, where other processes have parts of it.
    """

    recipe: Recipe
    task: Task
    base: Base
    model: Any
    train: Encoded
    validation: Encoded | None
    test: Encoded
    max_length: int
    data: Examples
    lengths: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    parent: Parent | None = None
    stack: Stack | None = None
    shards: Shards | None = None

    def settled(self) -> Prepared:
        """After the last step: the model is the one that is saved, as plain LoRA on the untouched base.

        Raises:
            TrainingError: nothing is left of it.
        """
        if self.recipe.method == "adalora":
            return replace(self, model=ranks_as_lora(self.model, self.base, self.task))
        settle(self.model)
        if self.stack is None:
            return self
        return replace(self, model=self.stack.joined(self.model, self.base, self.task), stack=None)


def prepare(
    recipe: Recipe, data: Examples, reporter: Reporter, parent: Parent | None = None, base: Base | None = None,
    group: Group = ALONE,
) -> Prepared:  # fmt: skip
    """Load the base, turn the rows into token ids, and put the adapter on. Raises as :func:`train`.

    ``base``: one that is in memory already, bare, for the same task and labels; its head is drawn again. ``group``: the
    processes that train together.
    """
    check_settings(recipe)
    if group.sharded:
        links = Links.among(group)
        with group.in_turn():  # each holds a whole base until that is cut up
            prepared = _prepare(recipe, data, reporter, parent, base, group, links)
    else:
        prepared = _prepare(recipe, data, reporter, parent, base, group)
    return _referred(prepared)


def _prepare(
    recipe: Recipe, data: Examples, reporter: Reporter, parent: Parent | None, base: Base | None, group: Group,
    links: Links | None = None,
) -> Prepared:  # fmt: skip
    """All that each process does by itself."""
    task = make_task(recipe, data.labels, data.problem_type)
    task.begin(data.train)
    if base is None:
        reporter.phase("loading the base")
        base = load_for(task, _on_the_cpu(recipe, links) if links else recipe)
    else:
        reseed(base, recipe.training.seed)
    if base.other_shapes:
        reporter.note(
            f"the base's own head is for other labels, so {base.other_shapes[0]!r}, which has another shape in its "
            "files, begins anew; PEFT alone loads the base with ignore_mismatched_sizes=True"
        )
    base = with_tokens(base, recipe, parent.checkpoint if parent else None, reporter.note)
    rows = {"train": data.train, "validation": data.validation, "test": data.test}
    encoded, lengths, max_length = encode_parts(recipe, rows, task, base, reporter)
    enough = with_enough_epochs(recipe, len(encoded["train"].features), group.count)
    if enough is not recipe:
        reporter.note(
            f"{len(encoded['train'].examples)} training rows are soon gone through: {enough.training.epochs:g} epochs "
            f"in place of {recipe.training.epochs:g}, for at least {recipe.training.min_steps} steps "
            "(training.min_steps)"
        )
        recipe = enough
    begun = begin(recipe, base, task, parent, encoded["train"].features[0], reporter.note)
    if parent is None or recipe.start == "stack":
        initialise(begun.model, base, task, recipe, encoded["train"].features, reporter.note)
    shards = shard(begun.model, links) if links else None
    if shards:
        reporter.note(f"the base's layers are cut up among {group.count} processes, {size(shards.held)} in each")
    train, validation, test = encoded["train"], encoded.get("validation"), encoded["test"]
    return Prepared(
        begun.recipe, task, base, begun.model, train, validation, test, max_length, data, lengths, parent, begun.stack,
        shards,
    )  # fmt: skip


def _referred(prepared: Prepared) -> Prepared:
    """With what the model makes of the rows before its first step, where the task asks for that."""
    task, size = prepared.task, prepared.recipe.training.batch_size

    def refer(rows: Encoded) -> Encoded:
        return task.refer(prepared.model, rows, prepared.base.tokenizer, size)

    validation = refer(prepared.validation) if prepared.validation else None
    return replace(prepared, train=refer(prepared.train), validation=validation, test=refer(prepared.test))


def _on_the_cpu(recipe: Recipe, links: Links) -> Recipe:
    """For a base that may be too large for the device it is trained on before it is cut up; in that device's dtype."""
    dtype = pick_dtype(links.device, recipe.dtype)
    return recipe.model_copy(update={"device": "cpu", "dtype": dtype_name(dtype)})


def encode_parts(
    recipe: Recipe, parts: Mapping[str, Sequence[Example]], task: Task, base: Base, reporter: Reporter
) -> tuple[Mapping[str, Encoded], Mapping[str, Mapping[str, int]], int]:
    """The token ids of each part that has rows, what became of those that are too long, and the length they have."""
    max_length = meet(recipe, task, base, reporter)
    cache = TokenCache.default(reporter.note)
    if cache:
        cache.expect(example.digest for examples in parts.values() for example in examples)
    encoded = {
        part: task.encode(examples, base.tokenizer, max_length, reporter.note, cache)
        for part, examples in parts.items()
        if examples
    }
    encoded, lengths = fit_lengths(encoded, recipe.data.too_long, task.room(max_length), reporter.note)
    return encoded, lengths, max_length


def meet(recipe: Recipe, task: Task, base: Base, reporter: Reporter) -> int:
    """Let the task get to know the base; the most tokens of a row. The base's weights aren't looked at.

    Raises:
        TrainingError: the base can't be trained for this task, or not with these settings.
    """
    if recipe.training.gradient_checkpointing and not base.model.supports_gradient_checkpointing:
        raise TrainingError(
            f"training.gradient_checkpointing: transformers can't do that for {type(base.model).__name__}; leave it "
            "out, and lower training.batch_size where memory runs out"
        )
    if virtual_tokens(recipe) and task.new_head and base.model.config.is_encoder_decoder:
        raise TrainingError(
            f"method: {recipe.method} puts its virtual tokens before a text's embeddings, which "
            f"{type(base.model).__name__} doesn't take; use method: lora, or ia3"
        )
    if recipe.method == "prefix-tuning" and task.name == "text-generation" and _has_router(base.model.config):
        raise TrainingError(
            f"method: prefix-tuning doesn't train {type(base.model).__name__}: its router's loss is taken over the "
            "text's tokens, which the prefix is none of; use method: prompt-tuning, or lora"
        )
    wanted = recipe.training.max_length
    most = min(base.tokenizer.model_max_length, longest_input(base.model) or sys.maxsize)
    longest = int(min(wanted, most - virtual_tokens(recipe)))
    if longest < wanted:
        reporter.note(f"the base takes {longest} tokens, training.max_length asks for {wanted}: {longest} are used")
    return task.meet(base.model, base.tokenizer, longest, reporter.note)


def _has_router(config: Any) -> bool:
    """Is it a mixture of experts, of which TRL's trainers ask for the router's loss?"""
    return hasattr(config.get_text_config(), "output_router_logits")
