"""Callers of an HTTP service, each waiting for its answer before it asks again; by the standard library alone."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor


def ask_all(address: tuple[str, int], path: str, bodies: Sequence[Mapping[str, object]], callers: int) -> int:
    """Send all bodies, from so many callers at once, each over one connection; returns the bytes of the answers."""

    def one(number: int) -> int:
        connection, taken = http.client.HTTPConnection(*address, timeout=600), 0
        for body in bodies[number::callers]:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            assert response.status == 200, text
            taken += len(text)
        connection.close()
        return taken

    with ThreadPoolExecutor(callers) as threads:
        return sum(threads.map(one, range(callers)))
