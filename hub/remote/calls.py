"""Asking the Hub: again after what passes, and with errors of the project's."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from lorary.hub.errors import (
    InvalidReferenceError,
    LoraryError,
    RemoteConflictError,
    RemoteError,
    UnknownReferenceError,
    first_line,
)
from lorary.hub.remote.session import asking, prepare
from lorary.hub.remote.wording import causes, cut, status_of, why

T = TypeVar("T")

WAITS = (1.0, 2.0, 4.0)
"""Seconds before each further attempt; the client itself repeats downloads and uploads, but not these calls."""

PATIENCE = 60.0
"""Seconds to wait for an answer to a short question."""

_LOGGER = logging.getLogger(__name__)
_PASSING = frozenset({429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0  # seconds: a Hub that asks for more is told of at once

sleep = time.sleep


def ask(
    call: Callable[[], T],
    repo: str,
    *,
    revision: str | None = None,
    verb: str = "read",
    again: Callable[[BaseException], bool] | None = None,
    patience: float | None = PATIENCE,
    hint: str = "",
) -> T:
    """What ``call`` returns; repeated after an answer that passes (429, 5xx) and after a cut connection.

    ``again`` may say that an error isn't worth another attempt. ``patience`` is the seconds to wait for an answer, None
    without end: for what moves files, whose time isn't known. ``hint`` is what the user may have meant instead.

    Raises:
        InvalidReferenceError: a name that the Hub doesn't allow.
        UnknownReferenceError: no such repository or revision.
        RemoteConflictError: somebody else changed the repository meanwhile (409, 412).
        RemoteError: the Hub refuses, fails or can't be reached.
    """
    prepare()
    for wait in (*WAITS, None):
        try:
            with asking():
                return call() if patience is None else within(patience, call)
        except LoraryError:
            raise
        except Exception as error:  # what httpx, hf_xet and the JSON reader raise passes through the client as it is
            pause = None if wait is None or (again and not again(error)) else _pause(error, wait)
            if pause is None:
                raise translated(error, repo, revision, verb, hint) from error
            status = status_of(error)
        found = f"the Hub answers with an error ({status})" if status else "the connection to the Hub broke off"
        _LOGGER.warning("%s: %s; trying again in %.0f s", repo, found, pause)
        sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def within(seconds: float, call: Callable[[], T]) -> T:
    """What ``call`` returns or raises, if it does so in time.

    The client itself knows no end, and a name server that doesn't answer heeds none: hence a thread, which is left
    behind.

    Raises:
        TimeoutError: it doesn't.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # raised again where somebody waits for it
            errors.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    return answers[0]


def _pause(error: BaseException, wait: float) -> float | None:
    """Seconds until the next attempt, None when another one is of no use."""
    status = status_of(error)
    if status is None and cut(error):
        return wait
    if status not in _PASSING:
        return None
    for cause in causes(error):
        response = getattr(cause, "response", None)
        asked = response.headers.get("Retry-After", "") if response is not None else ""
        if asked.isdecimal():
            return float(asked) if float(asked) <= _LONGEST_WAIT else None
    return wait


def conflict(shown: str) -> RemoteConflictError:
    """The error for a remote that somebody else is changing."""
    return RemoteConflictError(
        f"{shown}: somebody else changed the repository at the same time; nothing was overwritten, try again"
    )


def translated(error: BaseException, repo: str, revision: str | None, verb: str, hint: str = "") -> LoraryError:
    """An error of the client's as one of the project's."""
    from huggingface_hub.errors import (
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, HFValidationError):
        return InvalidReferenceError(f"{repo!r} can't be a repository on the Hub: {first_line(error)}")
    shown = repo if revision is None else f"{repo}@{revision}"
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes(error)):
        aside = f" ({hint})" if hint else ""
        return RemoteError(f"{shown}: HF_HUB_OFFLINE is set, so the Hub isn't asked; unset it and try again{aside}")
    if status_of(error) in (409, 412):
        return conflict(shown)
    kind: type[LoraryError] = RemoteError
    if any(isinstance(cause, RepositoryNotFoundError | RevisionNotFoundError) for cause in causes(error)):
        kind = UnknownReferenceError
    return kind(f"{shown}: {why(error, repo, revision, verb=verb, hint=hint)}")
