"""What a task tells an adapter's manifest: how the adapter is to be asked, wherever it is loaded."""

from __future__ import annotations

from typing import Any, ClassVar

from lorary.hub.manifest import Answering, Filling, Generation, Pooling, Preprocessing, Prompt
from lorary.training.recipe import Recipe


class InManifest:
    """The part of a task that its manifest holds; most tasks have little of it."""

    problem_type: ClassVar[str | None] = None
    recipe: Recipe
    labels: tuple[str, ...]

    def in_manifest(self, tokenizer: Any, max_length: int) -> dict[str, Any]:
        """The manifest's fields that are the task's to say, by their names.

        Args:
            tokenizer: the one that the rows were read with.
            max_length: the most tokens of a row.
        """
        return {
            "labels": self.labels or None,
            "problem_type": self.problem_type,
            "preprocessing": self.preprocessing(max_length),
            "prompt": self.prompt(tokenizer),
            "pooling": self.pooling(),
            "generation": self.generation(),
            "answering": self.answering(),
            "thresholds": self.thresholds(),
            "filling": self.filling(tokenizer),
        }

    def preprocessing(self, max_length: int) -> Preprocessing:
        """How rows become token ids."""
        return Preprocessing(self.recipe.data.columns.named(), max_length)

    def pooling(self) -> Pooling | None:
        """How hidden states become an embedding; None where the task has none."""
        return None

    def answering(self) -> Answering | None:
        """How spans are read as answers; None where the task has none."""
        return None

    def filling(self, tokenizer: Any) -> Filling | None:
        """How gaps are filled; None where the task has none."""
        return None

    def thresholds(self) -> tuple[float, ...] | None:
        """From which score on a row has each label; None where that is one half, or not asked."""
        return None

    def prompt(self, tokenizer: Any) -> Prompt | None:
        """How prompts are put; None where the task has none."""
        return None

    def generation(self) -> Generation | None:
        """How texts were generated to be measured; None where none were."""
        return None
