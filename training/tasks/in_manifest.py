"""What a task tells an adapter's manifest: how the adapter is to be asked, wherever it is loaded."""

from __future__ import annotations

from typing import Any

from lorary.hub.manifest import Answering, Filling, Generation, Pooling, Preprocessing, Prompt
from lorary.training.recipe import Recipe


class InManifest:
    """The part of a task that its manifest holds; most tasks have little of it."""

    recipe: Recipe

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
