"""Which adapters the service's callers may name: versions of the registry, looked up anew for each request."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lorary.adapters.backbone import Backbone
from lorary.adapters.running.inference import can_generate
from lorary.adapters.server.problems import CLOSED
from lorary.adapters.values import LoadedAdapter
from lorary.hub.errors import (
    BaseMismatchError,
    EngineStoppedError,
    InvalidReferenceError,
    RegistryError,
    UnknownReferenceError,
    UsageError,
)
from lorary.hub.finding.offers import Offer
from lorary.hub.reference import RegistryReference, parse_reference
from lorary.hub.values import Version

_MOST_LOADED = 1000  # versions that are kept loaded; those whose turn is longest ago are forgotten
_LOADERS = 4  # versions that are loaded at once
_SHOWN = 100  # signs of an unknown name that are told
_COMPARED = 256  # signs of it that are compared with what there is
_MOST_COMPARED = 2000  # models that it is compared with
_SLIP = 8  # by how many signs a slip may be shorter or longer
_BARE_TASK = "feature-extraction"


@dataclass(frozen=True)
class Served:
    """What a request's ``model`` stands for: the name on the backbone (None: the bare one), its task and its digest."""

    name: str | None
    task: str
    digest: str | None = None


class Models:
    """The models that requests may name.

    A reference to the registry means what it means there at that moment: a new version, or an alias that was moved,
    answers the next request, and a version that was removed answers no more. Folders and repositories on the Hub are
    loaded once, when the service starts; no request can name one.

    Args:
        backbone: what they run on, and whose registry references are looked up in.
        references: the models to offer; none of them means every version of the registry that fits the backbone.

    Raises:
        UsageError: a reference that stands there twice, or is the base's own name.
        LoraryError: one of them can't be loaded; all that :meth:`Backbone.load` raises.
    """

    def __init__(self, backbone: Backbone, references: Sequence[str] = ()) -> None:
        self.base = _shown_base(backbone.identity.id)
        self._backbone = backbone
        self._registry = backbone.registry
        self._offered: dict[str, Served | None] | None = None  # None as a value: to be looked up each time
        self._lock = threading.Lock()
        # Threads of their own: those that everybody's requests go through must not all wait for a load.
        self._loaders = ThreadPoolExecutor(_LOADERS, thread_name_prefix="lorary-loads")
        self._loading: dict[str, Future[None]] = {}
        self._loaded: OrderedDict[str, str] = OrderedDict()  # digests by reference, the one used last at the end
        self._stamp: tuple[object, ...] = ()
        self._versions: dict[str, Version] = {}
        self._listed: tuple[tuple[object, ...], list[dict[str, Any]]] | None = None
        if references:
            self._offered = {}
            for reference in references:
                self._offer(reference, self._offered)

    def known(self, model: str) -> Served | None:
        """What ``model`` stands for now, if that can be told at once: loaded, and the catalogue hasn't changed."""
        if model == self.base or (self._offered is not None and self._offered.get(model) is not None):
            return self._meant(model)[0]
        stamp = self._registry.stamp()
        with self._lock:
            version = self._versions.get(model) if stamp == self._stamp else None
            if version is None or self._loaded.get(version.reference) != version.digest:
                return None
            self._loaded.move_to_end(version.reference)
            return _served(version)

    def look(self, model: str) -> tuple[Served, Future[None] | None]:
        """What ``model`` stands for now, and where it isn't loaded a load that all share who want it.

        The catalogue may mean another version once that has ended, so look again.

        Raises:
            UnknownReferenceError: no such model is offered.
            BaseMismatchError: it is for another base.
            EngineStoppedError: the service is stopping.
        """
        served, version = self._meant(model)
        return served, None if version is None else self._load_of(version)

    def show(self, model: str) -> dict[str, Any]:
        """A row as of :meth:`listing`, for whatever a request may name; nothing is loaded for it.

        Raises:
            LoraryError: as :meth:`look`.
        """
        served, version = self._meant(model)
        return _row(model, served, version, self.base)

    def close(self) -> None:
        """Begin no more loads."""
        self._loaders.shutdown(wait=False, cancel_futures=True)

    @property
    def generates(self) -> bool:
        """Has the bare backbone a language-modelling head?"""
        return can_generate(self._backbone.model)

    @property
    def namesake(self) -> str | None:
        """What the catalogue's adapter of the base's own name is asked for by; None where none of that name fits."""
        rows = self._catalogue() if self._offered is None else []
        return next((row["id"] for row in rows if str(row["version"]).rpartition("@")[0] == self.base), None)

    def listing(self) -> list[dict[str, Any]]:
        """The models in the shape of OpenAI's list, with ``task``, ``domain``, ``version`` and ``digest`` besides.

        Of the registry what :meth:`Registry.offers <lorary.hub.Registry.offers>` has.
        """
        bare = Served(None, "text-generation" if self.generates else _BARE_TASK)
        rows = [_row(self.base, bare, None, self.base)]
        if self._offered is None:
            return rows + self._catalogue()
        for model, fixed in self._offered.items():
            if fixed is not None:
                rows.append(_row(model, fixed, None, self.base))
                continue
            try:
                version = self._version(model)
            except (UnknownReferenceError, RegistryError):
                continue  # removed or damaged meanwhile, which hides no other
            rows.append(_row(model, _served(version), version, self.base))
        return rows

    # Inside

    def _meant(self, model: str) -> tuple[Served, Version | None]:
        """What ``model`` stands for, and the version if it is one of the registry."""
        if model == self.base:
            return Served(None, "text-generation" if self.generates else _BARE_TASK), None
        if self._offered is not None:
            if model not in self._offered:
                raise self._unknown(model)
            if (fixed := self._offered[model]) is not None:
                return fixed, None
        try:
            version = self._version(model)
        except (InvalidReferenceError, UnknownReferenceError) as error:
            raise self._unknown(model) from error
        ours, theirs = self._backbone.identity.fingerprint, version.base_fingerprint
        if ours is not None and theirs is not None and ours != theirs:
            raise BaseMismatchError(f"{model} was trained on another base than {self.base}, which is served here")
        return _served(version), version

    def _offer(self, reference: str, offered: dict[str, Served | None]) -> None:
        if isinstance(parse_reference(reference), RegistryReference):
            if (load := self._load_of(self._registry.resolve(reference))) is not None:
                load.result()
            model, served = reference, None
        else:
            loaded: LoadedAdapter = self._backbone.load(reference)
            model, served = loaded.name, Served(loaded.name, loaded.task, loaded.digest)
        if model == self.base:
            raise UsageError(
                f"{model!r} is the base's own name, which means the bare one here; offer a version as NAME@1, or a "
                "folder of another name"
            )
        if model in offered:
            raise UsageError(f"two models of the name {model!r}; expected each once")
        offered[model] = served

    def _version(self, model: str) -> Version:
        """The version that a reference means; the catalogue is asked again once it has changed."""
        stamp = self._registry.stamp()
        with self._lock:
            if stamp != self._stamp:
                self._stamp = stamp
                self._versions.clear()
            if (known := self._versions.get(model)) is not None:
                return known
        version = self._registry.resolve(model)
        with self._lock:
            if stamp == self._stamp:
                self._versions[model] = version
        return version

    def _load_of(self, version: Version) -> Future[None] | None:
        """The load of a version, one however many ask for it at the same time; None where it is loaded."""
        name = version.reference
        with self._lock:
            if self._loaded.get(name) == version.digest:
                self._loaded.move_to_end(name)
                return None
            if name not in self._loading:
                try:
                    self._loading[name] = self._loaders.submit(self._load, name)
                except RuntimeError as error:
                    raise EngineStoppedError(CLOSED) from error
            return self._loading[name]

    def _load(self, name: str) -> None:
        try:
            digest = self._backbone.load(name, name).digest
            with self._lock:
                self._loaded[name] = digest
                self._loaded.move_to_end(name)
                self._forget()
        finally:
            with self._lock:
                del self._loading[name]

    def _forget(self) -> None:
        """Let go of what is too much; under the lock, or it might be asked for, and loaded anew, before it is gone."""
        for name in tuple(self._loaded)[: max(len(self._loaded) - _MOST_LOADED, 0)]:
            if name not in self._loading:
                del self._loaded[name]
                self._backbone.unload(name)

    def _catalogue(self) -> list[dict[str, Any]]:
        """The rows of what the registry has for this backbone; read again once it has changed."""
        stamp = self._registry.stamp()
        with self._lock:
            if self._listed is not None and self._listed[0] == stamp:
                return self._listed[1]
        identity = self._backbone.identity
        rows = []
        for offer in self._registry.offers(identity.id, identity.fingerprint):
            model = offer.model if offer.model != self.base else offer.reference  # that name is the bare backbone's
            rows.append(_row(model, Served(offer.reference, offer.task, offer.digest), offer, self.base))
        with self._lock:
            self._listed = stamp, rows
        return rows

    def _unknown(self, model: str) -> UnknownReferenceError:
        name = model[:_COMPARED]
        alike = [row["id"] for row in self.listing() if _alike(name, row["id"])]
        near = get_close_matches(name, alike[:_MOST_COMPARED], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "GET /v1/models lists what there is"
        return UnknownReferenceError(f"no model {model[:_SHOWN]!r} here; {hint}")


def _alike(name: str, other: str) -> bool:
    """May one be a slip for the other? It leaves the beginning or the end as it was; to compare more takes seconds."""
    return abs(len(name) - len(other)) < _SLIP and (name[:1] == other[:1] or name[-2:] == other[-2:])


def _served(version: Version) -> Served:
    return Served(version.reference, version.task, version.digest)


def _row(model: str, served: Served, version: Version | Offer | None, base: str) -> dict[str, Any]:
    created = 0
    if version:
        with suppress(ValueError, OverflowError):  # a time that is none hides no other row
            created = int(datetime.fromisoformat(version.created_at).timestamp())
    return {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "lorary",
        "root": base,
        "parent": None if served.name is None else base,
        "task": served.task,
        "domain": version.domain if version else None,
        "version": version.reference if version else None,
        "digest": served.digest,
    }


def _shown_base(identifier: str) -> str:
    """How callers name the bare backbone: by its id, or by its folder's own name."""
    return Path(identifier).name if Path(identifier).is_absolute() or Path(identifier).is_dir() else identifier
