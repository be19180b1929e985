"""What is logged while the Hub is asked again: the client's two or three lines for each attempt become one for all."""

from __future__ import annotations

import logging
import re

from lorary.hub.cli.output import print_note

_LOGGERS = ("huggingface_hub.utils._http", "huggingface_hub.file_download", "lorary.hub.remote.calls")
_OWN = re.compile(r"^(.*); trying again in ")
_STATUS = re.compile(r"HTTP Error (\d{3}) thrown while requesting")
_BROKEN = re.compile(r"thrown while requesting|^Error while downloading")
_ATTEMPT = re.compile(r"^(Retrying in|Rate limited\. Waiting) ")


class _Once(logging.Filter):
    """Drops the lines about attempts, and says each kind of trouble once in a command."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def begin(self) -> None:
        """Say everything anew."""
        self._said.clear()

    def filter(self, record: logging.LogRecord) -> bool:
        """See :class:`logging.Filter`."""
        text = record.getMessage()
        if own := _OWN.search(text):
            self._say(own[1])
        elif status := _STATUS.search(text):
            self._say(f"the Hub answers with an error ({status[1]})")
        elif _BROKEN.search(text):
            self._say("the connection to the Hub broke off or stands still")
        elif not _ATTEMPT.search(text):
            return True
        return False

    def _say(self, trouble: str) -> None:
        if trouble not in self._said:
            self._said.add(trouble)
            print_note(f"{trouble}; trying again for up to a minute", aside=True)


_ONCE = _Once()  # one for the process: a logger takes the same filter but once


def tell_waits_once() -> None:
    """Install it, for a command that begins; costs no import of the client."""
    _ONCE.begin()
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_ONCE)
