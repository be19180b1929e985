"""Recipe in, checked adapter out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lorary.training.recipe import Recipe

if TYPE_CHECKING:
    from lorary.training.advisor.advise import advise
    from lorary.training.evaluation.evaluate import evaluate
    from lorary.training.run import train
    from lorary.training.strategies.direct import measure

__all__ = ["Recipe", "advise", "evaluate", "measure", "train"]


_PLACES = {
    "advise": "lorary.training.advisor.advise",
    "evaluate": "lorary.training.evaluation.evaluate",
    "measure": "lorary.training.strategies.direct",
    "train": "lorary.training.run",
}


def __getattr__(name: str) -> Any:
    # A recipe is checked without torch; only asking for what runs it imports it.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lorary.adapters.base.quantization import quieten

    quieten()  # before bitsandbytes is imported, which prints a line then
    return getattr(import_module(_PLACES[name]), name)
