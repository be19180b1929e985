"""The client's HTTP session, with an end to its waiting and a token that stays at home.

``huggingface_hub`` waits without end for an upload to go on, repeats for half a minute what can't be reached, and takes
its token along wherever a list is continued. :func:`prepare` mends this in the one place that the client offers for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from lorary.hub.errors import UsageError
from lorary.hub.remote.wording import stuck, unreachable

TIMEOUT_VARIABLE = "LORARY_HUB_TIMEOUT"
_STALLED = 60.0  # seconds without a byte, after which a transfer counts as stuck
_CONNECT = 5.0  # seconds for each of a host's addresses

_asking: ContextVar[bool] = ContextVar("asking", default=False)


class GivenUpError(Exception):
    """What the client isn't to repeat; the cause says why. It never leaves ``lorary.hub.remote``."""


@contextmanager
def asking() -> Iterator[None]:
    """Within this, what can't be reached is told at once, and the token goes to the Hub alone.

    Elsewhere the client goes by its own ways: other libraries want what is in the cache then. So it does in the threads
    in which it fetches a snapshot's files, which don't inherit this: there it leaves the token out itself where a file
    is on another host than the Hub's.
    """
    token = _asking.set(True)
    try:
        yield
    finally:
        _asking.reset(token)


def prepare() -> None:
    """Let the client of this process use such a session, unless the user has given it another kind.

    Raises:
        UsageError: see :func:`stalled_after`.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    stalled_after()
    if _http._GLOBAL_CLIENT_FACTORY is _http.default_client_factory:
        set_client_factory(_make_client)


def stalled_after() -> float:
    """Seconds without a byte, after which a transfer is given up: ``LORARY_HUB_TIMEOUT``, by default 60.

    Raises:
        UsageError: the variable is no such number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE) or str(_STALLED)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"{TIMEOUT_VARIABLE} is {text!r}; expected a number of seconds, such as {_STALLED:.0f}")
    return seconds


def _make_client() -> Any:
    from huggingface_hub.utils import _http

    client: Any = _http.default_client_factory()
    usual = client.send

    def send(request: Any, **options: Any) -> Any:
        at_home = _on_the_hub(request.url)
        if _asking.get() and not at_home:
            request.headers.pop("Authorization", None)
        if at_home or request.method == "PUT":
            _limit(request.extensions.setdefault("timeout", {}))
        try:
            return usual(request, **options)
        except Exception as error:  # of httpx, whose errors wording.py knows by name
            if (_asking.get() and unreachable(error)) or (request.method == "PUT" and stuck(error)):
                raise GivenUpError(str(error)) from error
            raise

    client.send = send
    return client


def _on_the_hub(url: Any) -> bool:
    from huggingface_hub import constants

    # The client's own type reads both: it writes hosts in one way, whatever HF_ENDPOINT has.
    return _origin(url) == _origin(type(url)(constants.ENDPOINT))


def _origin(url: Any) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _limit(timeouts: dict[str, float | None]) -> None:
    seconds = stalled_after()
    for phase, most in (("connect", min(_CONNECT, seconds)), ("read", seconds), ("write", seconds)):
        given = timeouts.get(phase)
        timeouts[phase] = most if given is None else min(given, most)
