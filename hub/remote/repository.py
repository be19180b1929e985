"""A repository on the Hugging Face Hub as a remote.

A version is one commit on main, with its parent stated, so that a second writer is refused. Tags follow it: ``v3`` for
each version, and one per alias; a push that was killed before them is mended by the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from lorary.hub.checkpoint import CONFIG_NAME, KEPT_FILES, WEIGHTS_NAME
from lorary.hub.errors import (
    CheckpointError,
    LoraryError,
    RemoteConflictError,
    RemoteError,
    UnknownReferenceError,
)
from lorary.hub.remote.base import Fetched, Parcel, State, check_listing, stale
from lorary.hub.remote.calls import PATIENCE, ask, conflict
from lorary.hub.remote.download import commit_of, download, model_info, sizes
from lorary.hub.remote.versionfile import MAX_BYTES, VERSION_NAME, VersionFile, parse_version_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

T = TypeVar("T")

_VERSION_TAG = re.compile(r"v([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class Repository:
    """A model repository, ``user/name``, seen with the token of ``huggingface_hub``'s own login."""

    repo: str

    @property
    def address(self) -> str:
        """``user/name``."""
        return self.repo

    def state(self) -> State | None:
        """See :class:`~lorary.hub.remote.base.Remote`."""
        try:
            info = model_info(self.repo, None)
        except UnknownReferenceError:
            return None
        commit = commit_of(info, self.repo)
        present = sizes(info)
        latest = self._version_file(info)
        tags = self._tags()
        versions = dict(latest.versions) if latest else {}
        commits = {int(found[1]): tags[tag] for tag in tags if (found := _VERSION_TAG.fullmatch(tag))}
        commits = {number: commits[number] for number in versions if number in commits}
        by_commit = {place: number for number, place in sorted(commits.items())}
        return State(
            commit=commit,
            adapter=CONFIG_NAME in present,
            files=frozenset(present),
            versions=versions,
            commits=commits,
            aliases={
                tag: by_commit[place]
                for tag, place in tags.items()
                if place in by_commit and not _VERSION_TAG.fullmatch(tag)
            },
            tags=tags,
            latest=latest,
            changed=latest is not None and _changed(info, latest),
        )

    @contextmanager
    def fetch(self, revision: str | None) -> Iterator[Fetched]:
        """See :class:`~lorary.hub.remote.base.Remote`; the files stay in the local Hugging Face cache."""
        shown = self.repo if revision is None else f"{self.repo}@{revision}"
        info = model_info(self.repo, revision)
        commit = commit_of(info, shown)
        names = check_listing(sizes(info), shown)
        folder = download(self.repo, info, names)
        stated = None
        if VERSION_NAME in names:
            stated = parse_version_file((folder / VERSION_NAME).read_bytes(), shown)
        files = {name: folder / name for name in names if name in KEPT_FILES}
        yield Fetched(commit, files, stated, self._names(commit, stated))

    def publish(self, parcel: Parcel, seen: State | None, *, message: str, public: bool) -> str:
        """See :class:`~lorary.hub.remote.base.Remote`."""
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        api = _api()
        if seen is None:
            create = partial(api.create_repo, self.repo, repo_type="model", private=not public, exist_ok=True)
            self._ask(create)
            seen = self.state()
            if seen is not None and seen.adapter:  # it wasn't there a moment ago
                raise conflict(self.repo)
        present = seen.files if seen else ()
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *(CommitOperationDelete(name) for name in stale(present, parcel.contents)),
            *(CommitOperationAdd(name, part) for name, part in parcel.contents.items()),
        ]
        parent = seen.commit if seen else None
        title, _, description = message.partition("\n")

        def commit() -> str:
            made = api.create_commit(
                self.repo,
                operations,
                commit_message=title,
                commit_description=description.strip(),
                repo_type="model",
                parent_commit=parent,
            )
            return str(made.oid)

        try:
            return self._ask(commit, again=_at_the_commit, patience=None)
        except RemoteError:
            # The commit may be there, and only its answer lost on the way.
            with suppress(LoraryError):
                now = self.state()
                if now and now.commit != parent and now.latest and now.latest.digest == parcel.stated.digest:
                    return now.commit
            raise

    def point(self, number: int, commit: str, aliases: Collection[str], state: State) -> list[str]:
        """See :class:`~lorary.hub.remote.base.Remote`; moving a tag is deleting and creating it."""
        api, moved = _api(), []
        for tag in (f"v{number}", *sorted(aliases)):
            there = state.tags.get(tag)
            if there == commit:
                continue
            if there is not None:
                with suppress(UnknownReferenceError):  # somebody else has deleted it
                    self._ask(partial(api.delete_tag, self.repo, tag=tag))
            try:
                self._ask(partial(api.create_tag, self.repo, tag=tag, revision=commit))
            except RemoteConflictError:  # it is there: made by an attempt whose answer was lost, or by somebody else
                if self._tags().get(tag) != commit:
                    raise
            moved.append(tag)
        return moved

    def commit_of(self, number: int, state: State) -> str | None:
        """Where a version is, also when its tag is missing or wrong: then its commit is looked for in the history."""
        if number in state.commits and self._holds(state.commits[number], number, state):
            return state.commits[number]
        history = self._ask(partial(_api().list_repo_commits, self.repo), verb="read")
        found = None
        for made in history:
            if self._holds(made.commit_id, number, state):
                found = made.commit_id  # go on to the oldest: those after it only changed the card, or the like
            elif found:
                break
        return found

    def _holds(self, commit: str, number: int, state: State) -> bool:
        with suppress(CheckpointError, RemoteError, UnknownReferenceError):
            there = self._version_file(model_info(self.repo, commit))
            return there is not None and (there.number, there.digest) == (number, state.versions.get(number))
        return False

    def _tags(self) -> dict[str, str]:
        refs = self._ask(partial(_api().list_repo_refs, self.repo), verb="read")
        return {tag.name: tag.target_commit for tag in refs.tags}

    def _names(self, commit: str, stated: VersionFile | None) -> tuple[str, ...]:
        """The aliases of the version at a commit: the tags there, and those that a killed push left to be made."""
        if stated is None:
            return ()
        tags = self._tags()
        here = {tag for tag, place in tags.items() if place == commit and not _VERSION_TAG.fullmatch(tag)}
        return tuple(sorted(here | {alias for alias in stated.aliases if alias not in tags}))

    def _version_file(self, info: ModelInfo) -> VersionFile | None:
        size = sizes(info).get(VERSION_NAME, 0)
        if size is None or not 0 < size <= MAX_BYTES:
            return None
        path = download(self.repo, info, [VERSION_NAME]) / VERSION_NAME
        return parse_version_file(path.read_bytes(), f"{self.repo}@{commit_of(info, self.repo)[:12]}")

    def _ask(
        self,
        call: Callable[[], T],
        *,
        verb: str = "write to",
        again: Callable[[BaseException], bool] | None = None,
        patience: float | None = PATIENCE,
    ) -> T:
        return ask(call, self.repo, verb=verb, again=again, patience=patience)


def user_name() -> str:
    """The user that is logged in.

    Raises:
        RemoteError: nobody is, or the Hub can't be asked.
    """
    return str(ask(_api().whoami, "your account", verb="read")["name"])


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi()


def _changed(info: ModelInfo, latest: VersionFile) -> bool:
    """Has somebody put other weights beside the version's description?"""
    known = latest.files.get(WEIGHTS_NAME)
    lfs = next((sibling.lfs for sibling in info.siblings or () if sibling.rfilename == WEIGHTS_NAME), None)
    return known is not None and (lfs is None or lfs.sha256 != known.sha256)


def _at_the_commit(error: BaseException) -> bool:
    """True for the one step of a commit that the client doesn't repeat by itself."""
    response = getattr(error, "response", None)
    return response is not None and "/commit/" in str(response.url)
