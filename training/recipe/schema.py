"""The recipe as a whole: its top level, and how one is read, overridden and written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from lorary.hub.errors import RecipeError
from lorary.training.recipe.check import contradictions
from lorary.training.recipe.defaults import with_defaults
from lorary.training.recipe.explain import explain
from lorary.training.recipe.methods import LORA_METHODS
from lorary.training.recipe.new_tokens import listed
from lorary.training.recipe.place import demand_homes
from lorary.training.recipe.raw import RawRecipe, in_order, parse_recipe, read_recipe
from lorary.training.recipe.sections import (
    Data,
    EmbeddingSettings,
    GenerationSettings,
    Lora,
    PreferenceSettings,
    ProblemType,
    PromptSettings,
    ReportSettings,
    Section,
    Strategy,
    Task,
    Text,
    TokenSettings,
    Training,
)


class Recipe(Section):
    """Every setting of a run. Made by :meth:`load` or :meth:`from_flags`, which report all mistakes at once.

    ``strategy``: ``direct`` measures the base as it is; ``fine-tune`` trains on the task's rows; ``continual`` goes on
    with pretraining on unlabelled text (Gururangan et al. 2020); ``intermediate`` makes a task adapter that starts from
    a domain adapter (Phang et al. 2018).
    ``from_`` (written ``from``) names the adapter to start from, a reference or a folder. ``start`` says how:
    ``continue`` trains its low-rank weights further, at its rank, alpha and targets; ``stack`` leaves them as they are
    and trains new ones beside them, saved as one adapter whose ranks add up.

    ``lora.model_fields_set`` and the recipe's own are what was given, without defaults.

    ``lora`` holds the settings of LoRA and its kin, ``peft`` those of any other method, by PEFT's own names.
    """

    name: Text
    domain: Text
    task: Task
    problem_type: ProblemType | None = None
    base: Text
    revision: Text | None = None
    strategy: Strategy = "fine-tune"
    from_: Text | None = Field(None, alias="from")
    start: Literal["continue", "stack"] | None = None
    method: Text = "lora"
    quantization: Literal["none", "nf4", "fp4", "int8"] = "none"
    double_quantization: bool | None = None
    data: Data
    lora: Lora = Lora()
    peft: dict[str, Any] = Field(default_factory=dict)
    tokens: TokenSettings = TokenSettings()
    training: Training
    prompt: PromptSettings = PromptSettings()
    preference: PreferenceSettings = PreferenceSettings()
    generation: GenerationSettings = GenerationSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    report: ReportSettings = ReportSettings()
    output: Text | None = None
    tags: tuple[Text, ...] = ()
    alias: Text | None = None
    device: Text | None = None
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = (), flags: Mapping[str, Any] | None = None) -> Recipe:
        """Read a recipe file.

        Args:
            path: a YAML file.
            overrides: ``key=value`` texts such as ``training.epochs=3``; they win over ``flags`` and the file.
            flags: dotted keys and values, as for :meth:`from_flags`; they win over the file.

        Raises:
            RecipeError: every mistake in it, each with its line, what was found and what is allowed.
        """
        return cls.build(_with_flags(read_recipe(path), flags or {}).with_overrides(overrides))

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
        """Build a recipe from dotted keys and their values (``{"data.train": "train.jsonl"}``), without a file.

        Raises:
            RecipeError: as :meth:`load`.
        """
        return cls.build(_with_flags(RawRecipe("recipe"), flags).with_overrides(overrides))

    @classmethod
    def build(cls, raw: RawRecipe) -> Recipe:
        """Check raw values as a whole, with each task's defaults put in. Raises as :meth:`load`."""
        demand_homes(raw)
        values = with_defaults(raw.values)
        recipe: Recipe | None = None
        problems: list[str] = []
        try:
            recipe = cls.model_validate(_tuples(values))
        except ValidationError as error:
            problems = explain(error, raw, cls)
        # Contradictions are looked for even in a recipe that has other mistakes: one round of mending is enough.
        problems += contradictions(values, raw, already=problems)
        if problems or recipe is None:
            raise RecipeError(raw.source, in_order(problems))
        given = raw.values.get("lora") or {}
        # So that a setting that contradicts an inherited one can be told from a default that doesn't.
        lora = Lora.model_construct(_fields_set=set(given), **dict(recipe.lora))
        return recipe.model_copy(update={"lora": lora, "tokens": listed(recipe.tokens)})

    def changed(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe with settings put in by their dotted keys, checked as a whole; None takes one out.

        Raises:
            RecipeError: they contradict what it says.
        """
        # Without the lines of a text that nobody has written.
        raw = RawRecipe(self.name, parse_recipe(self.given(), self.name).values)
        for dotted, value in settings.items():
            raw.put(dotted, value, "given")
        return self.build(raw)

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, as YAML that :meth:`load` reads back to an equal one."""
        return yaml.safe_dump(_lists(self.settings()), sort_keys=False, allow_unicode=True)

    def given(self) -> str:
        """What was given, and what followed from it, as YAML: read back, defaults can still be told from settings."""
        told = self.model_dump(exclude_unset=True, exclude_none=True, by_alias=True, exclude=self._unused)
        return yaml.safe_dump(_lists(told), sort_keys=False, allow_unicode=True)

    def settings(self, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """The whole recipe as plain values, without what its method doesn't use; :meth:`load` reads it back."""
        return self.model_dump(mode=mode, exclude_none=True, by_alias=True, exclude=self._unused)

    @property
    def _unused(self) -> set[str]:
        """The section that the method has no use for."""
        return {"peft"} if self.method in LORA_METHODS else {"lora"}

    @property
    def base_quantization(self) -> str:
        """The base's quantization by its one name, as the loader takes it and manifests state it."""
        return f"{self.quantization}-single" if self.double_quantization is False else self.quantization


FLAG_OF: Mapping[str, str] = {
    "base": "--base", "data.train": "--data", "data.test": "--test", "task": "--task", "domain": "--domain",
    "name": "--name", "method": "--method", "quantization": "--quantization", "output": "--output",
    "training.epochs": "--epochs", "lora.rank": "--rank", "training.learning_rate": "--learning-rate",
    "training.seed": "--seed", "device": "--device", "device_map": "--device-map", "alias": "--alias",
    "strategy": "--strategy", "from": "--from", "training.seeds": "--seeds", "training.folds": "--folds",
}  # fmt: skip
"""The command line's flag for each setting that has one of its own; ``--set`` reaches all others."""


def _with_flags(raw: RawRecipe, flags: Mapping[str, Any]) -> RawRecipe:
    problems = [raw.put(dotted, value, FLAG_OF.get(dotted, "given")) for dotted, value in flags.items()]
    if any(problems):
        raise RecipeError(raw.source, [problem for problem in problems if problem])
    return raw


def _tuples(value: Any) -> Any:
    """Lists become tuples, since a frozen recipe holds nothing that can change."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value
