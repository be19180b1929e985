"""Recipe in, checked adapter out."""

from typing import TYPE_CHECKING, Any

from lorary.training.recipe import Recipe

if TYPE_CHECKING:
    from lorary.training.run import train
    from lorary.training.strategies.direct import measure

__all__ = ["Recipe", "measure", "train"]


def __getattr__(name: str) -> Any:
    # A recipe is checked without torch; only asking for what runs it imports it.
    if name not in ("train", "measure"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lorary.adapters.base.quantization import quieten

    quieten()  # before bitsandbytes is imported, which prints a line then
    if name == "train":
        from lorary.training.run import train

        return train
    from lorary.training.strategies.direct import measure

    return measure
