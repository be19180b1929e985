"""Recipe in, checked adapter out."""

from typing import TYPE_CHECKING, Any

from lorary.training.recipe import Recipe

if TYPE_CHECKING:
    from lorary.training.run import train

__all__ = ["Recipe", "train"]


def __getattr__(name: str) -> Any:
    # A recipe is checked without torch; only asking for `train` imports it.
    if name == "train":
        from lorary.training.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
