"""What went wrong with the Hub, in a few words: the one place that knows the client's errors."""

from __future__ import annotations

from collections.abc import Iterator

from lorary.hub.errors import first_line

_LONGEST = 300  # characters of an error that is quoted
# By name, since the client has moved from one HTTP library to another and may again.
_STUCK = frozenset({"ReadTimeout", "WriteTimeout"})
_UNREACHABLE = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"}) | _STUCK
_CUT = frozenset({"ReadError", "WriteError", "RemoteProtocolError"})


def why(
    error: BaseException,
    repo: str,
    revision: str | None = None,
    *,
    noun: str = "repository",
    verb: str = "read",
    hint: str = "",
) -> str:
    """Why the Hub didn't do what was asked of it, without a full stop.

    Args:
        error: what ``huggingface_hub`` raised; it wraps what it met, so its causes are looked at too.
        repo: the repository asked for, and ``revision`` of it.
        revision: a branch, tag or commit.
        noun: what the user thinks of: a ``repository`` or a ``model``.
        verb: what the user wanted: to ``read`` it or to ``write to`` it.
        hint: what the user may have meant instead; stands in brackets where the name may be at fault.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    aside = f" ({hint})" if hint else ""
    for cause in causes(error):
        if isinstance(cause, GatedRepoError):
            return f"it asks for an agreement first (see {constants.ENDPOINT}/{repo}, then `hf auth login`)"
        if isinstance(cause, RevisionNotFoundError):
            return f"the {noun} has no revision {revision!r}{aside}"
        if isinstance(cause, RepositoryNotFoundError):
            return f"the Hub knows no such {noun} (a private one needs `hf auth login`{hint and f'; {hint}'})"
        if isinstance(cause, HfHubHTTPError):
            return _refusal(cause, verb)
        if isinstance(cause, OfflineModeIsEnabled):
            return f"it isn't in the local cache, and HF_HUB_OFFLINE is set{aside}"
        if isinstance(cause, LocalTokenNotFoundError):
            return "there is no token; `hf auth login` stores one"
    last = list(causes(error))[-1]
    if stuck(error):
        return f"{constants.ENDPOINT} doesn't answer, or has stopped to; try again, what arrived is kept{aside}"
    if isinstance(last, TimeoutError):
        return f"{constants.ENDPOINT} doesn't answer{aside}"
    if unreachable(error):
        return f"{constants.ENDPOINT} can't be reached ({first_line(last)}){aside}"
    return f"{_brief(last)}{aside}"


def _brief(error: BaseException) -> str:
    """All of an error's text on one line, if it isn't long: the reason may stand in the second one."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _refusal(error: BaseException, verb: str) -> str:
    status = status_of(error)
    if status in (401, 403):
        return f"the Hub refuses access ({status}); `hf auth login` with a token that may {verb} it"
    if status == 429:
        return "the Hub asks for patience (429, too many requests); try again in a few minutes"
    if status is not None and status >= 500:
        return f"the Hub answers with an error ({status}), try again later"
    return f"the Hub answers with an error ({status}: {_brief(error)})"


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered with, if it did."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if response is not None:
            return int(response.status_code)
    return None


def unreachable(error: BaseException) -> bool:
    """Is nobody there, or does nobody answer?"""
    return any(type(cause).__name__ in _UNREACHABLE for cause in causes(error))


def stuck(error: BaseException) -> bool:
    """Was there a connection, and then nothing for as long as one waits?"""
    return any(type(cause).__name__ in _STUCK for cause in causes(error))


def cut(error: BaseException) -> bool:
    """Did the connection break off?"""
    return any(type(cause).__name__ in _CUT for cause in causes(error))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it, the first one last."""
    while error is not None:
        yield error
        error = error.__cause__
