"""Loading adapters onto a backbone, exchanging them, and letting them go."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from lorary.adapters.arguments import adapter_name, listed
from lorary.adapters.backbone.assembly import Assembly
from lorary.adapters.values import LoadedAdapter
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import UnknownReferenceError
from lorary.hub.tables.lookup import registry_reference


class Loads(Assembly):
    """Which adapters are there, and under which names."""

    def load(
        self,
        reference: str | Path | Checkpoint,
        name: str | None = None,
        *,
        allow_base_mismatch: bool = False,
        lazy: bool = False,
    ) -> LoadedAdapter:
        """Load an adapter: validated whole, staged, shown to take effect, then published under its name.

        Whatever was loaded under that name serves until then, and goes on serving when anything fails.

        Args:
            reference: ``name``, ``name@3``, ``name@alias``, ``user/repo[@revision]``, a folder, or a checkpoint.
            name: the name to load it under; the adapter's own unless given.
            allow_base_mismatch: load an adapter of another base all the same.
            lazy: publish it as soon as its base, its config and its tensors' names and shapes are found right; the
                tensors are read, and it is shown to take effect, when it is first used.

        Raises:
            UnknownReferenceError: there is no such adapter.
            CheckpointError: its files are damaged, don't fit, or don't act (the subclass says which).
            BaseMismatchError: it was trained on another base.
            SlotsFullError: every slot is pinned or in use.
        """
        name = None if name is None else adapter_name(name)
        return self._intake.load(reference, name, allow_base_mismatch=allow_base_mismatch, lazy=lazy)

    def swap(
        self, name: str, reference: str | Path | Checkpoint, *, allow_base_mismatch: bool = False
    ) -> LoadedAdapter:
        """Let ``name`` stand for another version; calls in flight finish on the one they began with.

        Raises:
            UnknownReferenceError: nothing is loaded under ``name``; and all that :meth:`load` raises.
        """
        self._calls.find(name)
        return self.load(reference, name, allow_base_mismatch=allow_base_mismatch)

    def unload(self, name: str) -> None:
        """Forget an adapter; calls in flight finish on it.

        Raises:
            UnknownReferenceError: nothing is loaded under ``name``.
        """
        self._calls.find(name)
        self._withdraw(name)

    def pin(self, name: str) -> None:
        """Keep an adapter on the device, and whatever its name is swapped for; one that runs through PEFT always is.

        Raises:
            UnknownReferenceError: nothing is loaded under ``name``.
            SlotsFullError: every slot is pinned or in use.
        """
        self._pin(name, True)

    def unpin(self, name: str) -> None:
        """Let an adapter be moved to the host again when slots run short.

        Raises:
            UnknownReferenceError: nothing is loaded under ``name``.
        """
        self._pin(name, False)

    def _pin(self, name: str, pinned: bool) -> None:
        adapter_name(name)
        with self._residency.lock:
            if self._peft.find(name) is not None:
                return self._residency.note_pin(name, pinned)  # for when it is swapped for one in slots
        return self._residency.pin(name, pinned)

    def prefetch(self, names: Sequence[str]) -> dict[str, Future[None]]:
        """Begin to bring adapters in, in the background: to the host, and as many as there are slots into slots.

        Returns:
            A future by name, for who wants to wait or to hear of a failure; the next call that uses the name raises it
            in any case. An adapter that runs through PEFT is there already, and has none.

        Raises:
            UnknownReferenceError: one of them isn't loaded.
        """
        wanted = [adapter_name(name) for name in listed(names, "the names of loaded adapters")]
        return self._intake.prefetch([name for name in wanted if self._peft.find(name) is None])

    def follow(self, reference: str, name: str | None = None, *, interval: float = 2.0) -> LoadedAdapter:
        """Load ``name@alias`` (or a bare name: its latest version), and again whenever it means another version.

        A version that can't be loaded leaves the one before serving: a ``FollowWarning`` and ``stats().followed`` say
        why, once, and it is tried again when the alias moves again (after lack of room or of memory, at every look).

        Args:
            reference: what to follow, in the registry.
            name: the name to load it under; the adapter's own unless given.
            interval: seconds between two looks at the registry's change counter; of several names, the shortest holds.

        Raises:
            UsageError: the reference can't move; and all that :meth:`load` raises.
        """
        name = registry_reference(reference).name if name is None else adapter_name(name)
        return self._following.follow(reference, name, self._intake.registry, interval)

    def unfollow(self, name: str) -> None:
        """Follow a name's reference no more; the version that serves now stays.

        Raises:
            UnknownReferenceError: it isn't followed.
        """
        if not self._following.forget(adapter_name(name)):
            followed = ", ".join(state.name for state in self._following.states()) or "none"
            raise UnknownReferenceError(f"{name!r} follows no reference; followed: {followed}")

    def refresh(self) -> list[str]:
        """Look at the registry now, rather than at the next interval; returns the followed names that were swapped."""
        return self._following.refresh()
