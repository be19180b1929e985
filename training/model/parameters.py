"""Which parameters of a base get an adapter that no linear layer holds: a mixture's fused experts and its router."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorary.adapters.base.identity import body_of
from lorary.adapters.base.modules import map_modules
from lorary.hub.errors import TrainingError
from lorary.training.model.picking import counted, in_layers, lies_in, matching
from lorary.training.recipe.check_method import EXPERTS

_KEY = "lora.parameters"


def resolve_parameters(
    model: Any, asked: str | Sequence[str], saved: Sequence[str], layers: str | Sequence[int] | None = None
) -> list[str]:
    """The paths of the parameters that get an adapter.

    Args:
        model: a base with its task's head.
        asked: ``experts`` (every stack of matrices), a list of names or ends of paths, or a regular expression that
            matches whole paths.
        saved: modules that are trained whole.
        layers: numbers of the layers to keep, as for the targets.

    Raises:
        TrainingError: a name or a pattern matches nothing; the message lists what could match.
    """
    there = adaptable_parameters(model, saved)
    if not there:
        raise TrainingError(
            f"{_KEY}: {type(model).__name__} has no parameters but those of its layers, such as fused experts; leave "
            "it out, and name layers in lora.targets"
        )
    if asked == EXPERTS:
        chosen = [path for path, dimensions in there.items() if dimensions == 3]
        if not chosen:
            raise TrainingError(
                f"{_KEY}: {type(model).__name__} has no fused experts; there are {counted(list(there))}"
            )
    else:
        chosen = matching(asked, list(there), _KEY, "parameter")
    if layers is not None:
        # The numbers are those of the base's layers, of which not each need have experts.
        chosen = in_layers(chosen, layers, among=[*map_modules(model, body_of(model)).linears, *there])
        if not chosen:
            raise TrainingError(f"lora.layers leaves none of the parameters that {_KEY} names; number other layers")
    return chosen


def adaptable_parameters(model: Any, saved: Sequence[str]) -> dict[str, int]:
    """The body's matrices and stacks of matrices outside of torch's own kinds of layers, with their dimensions."""
    modules = map_modules(model, body_of(model))
    return {
        f"{path}.{name}": parameter.dim()
        for path, module in model.named_modules()
        if path.startswith(modules.body_prefix)
        and path in modules.others
        and not type(module).__module__.startswith("torch.nn.")
        and not lies_in(path, saved)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() in (2, 3) and parameter.is_floating_point() and not name.endswith("bias")
    }
