"""Cached prefixes: requests of one version of an adapter share the keys and values of what their prompts begin with.

transformers finds a cached block by a hash of its tokens and of the block before it, whoever made it. Here the first
block's tokens begin with the digest of the adapter that made them, and with them the hashes of all blocks after it. So
another adapter, or another version under the same name, never meets them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import partial
from typing import Any, SupportsIndex, overload

from lorary.adapters.engine.request import Request
from lorary.hub.errors import EngineUnsupportedError


class KeyedTokens(list[int]):
    """A request's tokens; a slice that is the whole first block has its adapter's key before them."""

    def __init__(self, tokens: list[int], key: tuple[int, ...]) -> None:
        super().__init__(tokens)
        self._key = key

    @overload
    def __getitem__(self, place: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, place: slice, /) -> list[int]: ...
    def __getitem__(self, place: Any, /) -> Any:
        """As a list's, but for that block."""
        found = super().__getitem__(place)
        whole = isinstance(place, slice) and place.start == 0 and place.stop == len(found)
        return [*self._key, *found] if whole else found


def key_of(request: Request) -> tuple[int, ...]:
    """What sets a request's blocks apart: its adapter's digest, as numbers; nothing for the bare backbone."""
    return tuple(array("i", bytes.fromhex(request.adapter.digest))) if request.adapter is not None else ()


def share_prefixes(cache: Any, running: Callable[[str], Request], note: Callable[[int], None]) -> None:
    """Let a cache that shares blocks do so within adapters only.

    Args:
        cache: transformers' ``PagedAttentionCache``, made with ``allow_block_sharing``.
        running: the request of an id.
        note: is told how many tokens of a prompt were found.

    Raises:
        EngineUnsupportedError: the model's layers don't let it share.
    """
    if not cache.use_prefix_sharing:
        raise EngineUnsupportedError(
            "prefix_cache: this model has layers whose keys and values don't stay (a sliding window), so transformers "
            "shares none of them; leave it out"
        )
    cache.free_all_requests(clear_ledgers=True)  # what warming up has left in it
    search = cache.search_prefix_match

    def search_own(request_id: str, prompt_ids: list[int]) -> int:
        found = int(search(request_id, KeyedTokens(prompt_ids, key_of(running(request_id)))))
        note(found)
        return found

    def mark_own(mark: Callable[..., None], request_id: str, token_ids: list[int], complete: int) -> None:
        request = running(request_id)
        if not request.done:  # else it may have failed in this step, and its blocks hold nothing
            mark(request_id, KeyedTokens(token_ids, key_of(request)), complete)

    cache.search_prefix_match = search_own
    for allocator in cache.cache_allocators.values():
        allocator.mark_complete_blocks = partial(mark_own, allocator.mark_complete_blocks)
