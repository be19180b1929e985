"""What adapters there are on the Hub or in a shared folder, without fetching any."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from lorary.hub.card.metadata import DOMAIN_TAG, TAG
from lorary.hub.errors import InvalidReferenceError, LoraryError, RemoteError
from lorary.hub.manifest import TASKS
from lorary.hub.reference import normalise_domain
from lorary.hub.remote.address import FolderAddress, parse_address
from lorary.hub.remote.calls import PATIENCE, ask
from lorary.hub.remote.folder import SharedFolder, may_hold_versions
from lorary.hub.tables.catalogue import check_task

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_LOGGER = logging.getLogger(__name__)
_BASE_TAG = "base_model:"
_RELATIONS = ("adapter:", "finetune:", "merge:", "quantized:")


@dataclass(frozen=True)
class Listed:
    """An adapter on a remote, as its tags describe it; what they don't say is None."""

    address: str
    domain: str | None
    task: str | None
    base: str | None
    private: bool | None
    updated: str | None


def list_remote(
    owner: str | None,
    *,
    domain: str | None = None,
    task: str | None = None,
    base: str | None = None,
    limit: int | None = 100,
) -> tuple[list[Listed], bool]:
    """The adapters of a user or an organization, of everybody (None), or of a shared folder (``file:///...``).

    Of everybody only those are listed that lorary has pushed; of one owner also what was made with PEFT alone.

    Returns:
        At most ``limit`` of them (None: all), and whether there are more.

    Raises:
        UsageError: not a task.
        RemoteError: the Hub refuses, fails or can't be reached.
    """
    enough = None if limit is None else limit + 1
    domain = normalise_domain(domain) if domain is not None else None
    task = check_task(task) if task is not None else None
    if owner is not None and owner.startswith("file:"):
        address = parse_address(owner)
        assert isinstance(address, FolderAddress)
        rows: Iterator[Listed] = (row for row in _in_folder(address) if _fits(row, domain, task, base))
    else:
        rows = _on_hub(owner, domain, task, base, enough)
    found = list(islice(rows, enough))
    return found[:limit], limit is not None and len(found) > limit


def _fits(row: Listed, domain: str | None, task: str | None, base: str | None) -> bool:
    wanted = {"domain": domain, "task": task, "base": base}
    return all(value is None or getattr(row, name) == value for name, value in wanted.items())


def _on_hub(
    owner: str | None, domain: str | None, task: str | None, base: str | None, limit: int | None
) -> Iterator[Listed]:
    from huggingface_hub import HfApi

    if owner is not None and ("/" in owner or not owner):
        raise InvalidReferenceError(
            f"{owner!r} isn't a user; expected a name such as 'org', or file:///a/shared/folder"
        )
    tags = [TAG if owner is None else "peft"]
    tags += [DOMAIN_TAG + domain] if domain else []
    tags += [task] if task else []
    tags += [_BASE_TAG + base] if base else []
    # The pages come one by one while the list is read, and the client itself repeats what fails.
    query = partial(HfApi().list_models, filter=tags, author=owner, limit=limit)
    yield from ask(
        lambda: [_listed(model) for model in query()],
        owner or "all adapters",
        again=lambda _: False,
        patience=10 * PATIENCE,
    )


def _listed(model: ModelInfo) -> Listed:
    tags = [str(tag) for tag in model.tags or ()]
    bases = [tag.removeprefix(_BASE_TAG) for tag in tags if tag.startswith(_BASE_TAG)]
    domains = [tag.removeprefix(DOMAIN_TAG) for tag in tags if tag.startswith(DOMAIN_TAG)]
    when = model.last_modified or model.created_at
    return Listed(
        address=str(model.id),
        domain=domains[0] if domains else None,
        task=model.pipeline_tag or next((tag for tag in tags if tag in TASKS), None),
        base=next((base for base in bases if not base.startswith(_RELATIONS)), None),
        private=model.private if isinstance(model.private, bool) else None,
        updated=when.date().isoformat() if when else None,
    )


def _in_folder(address: FolderAddress) -> Iterator[Listed]:
    try:
        folders = [path for path in sorted(address.path.iterdir()) if may_hold_versions(path)]
    except OSError as error:
        raise RemoteError(f"{address}: {error.strerror or error}; is it mounted?") from error
    for folder in folders:
        remote = SharedFolder(folder)
        try:
            state = remote.state()
        except LoraryError as error:  # one that is damaged or private hides no others
            _LOGGER.warning("%s (left out of the list)", error)
            continue
        if state is None or state.latest is None:
            continue
        latest = state.latest
        yield Listed(remote.address, latest.domain, latest.task, latest.base, None, latest.created_at[:10])
