"""The routing of a call whose adapter runs through PEFT: in a model of its own, never in the backbone's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from lorary.adapters.layer.routing import Routing, active
from lorary.hub.errors import RoutingError


class OwnPass(Routing):
    """Every row uses one adapter, whose model isn't the backbone's."""

    @contextmanager
    def until_closed(self) -> Iterator[Self]:
        """The routing, until the block ends."""
        try:
            yield self
        finally:
            self.close()


def demand_own_model(module: Any, args: Any) -> None:
    """Before the backbone's forward: of such an adapter it knows nothing, and would answer as the bare base does.

    Raises:
        RoutingError: the call belongs to an adapter that runs through PEFT.
    """
    routing = active()
    if isinstance(routing, OwnPass):
        adapter = routing.adapters[0]
        raise RoutingError(
            f"{adapter.name if adapter else 'this adapter'!r} runs through PEFT, in a model of its own, and the "
            "backbone's own model was called; call the model that the `using` block gives"
        )
