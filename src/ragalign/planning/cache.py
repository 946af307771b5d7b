"""A simulation of vLLM's prefix cache: how many tokens of each request it would have cached.

As in vLLM 0.32 (``v1/core/block_pool.py`` and ``kv_cache_manager.py``): a prompt's tokens are cut into blocks, and a
full block's key is a hash of its tokens and of the previous key. A request reuses the longest run of known blocks from
its start, except its last token, which must be computed to continue. Unused blocks stay until their space is needed:
the least recently used are evicted first, and of one request the last blocks first. Partial blocks are freed at once. A
block that is computed twice is stored twice.

Requests that reuse kept keys and values load the tokens of these demonstrations that the cache lacks. Like the engine,
the simulation keeps their blocks apart from those of other requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError
from ragalign.types import Prompt


@dataclass(frozen=True, slots=True)
class TokenSources:
    """How the tokens of a prompt came about.

    Attributes:
        n_cached: from the prefix cache.
        n_loaded: from kept keys and values.
        n_computed: all others.
    """

    n_cached: int
    n_loaded: int
    n_computed: int


class PrefixCache:
    """The cache of an engine that answers requests one at a time.

    If the capacity is not reached, the result is the same for concurrent requests, since a block is known as soon as
    its request is scheduled. Near the capacity, concurrent requests occupy more blocks.

    Args:
        block_size: tokens per block.
        capacity: number of blocks; None for no limit. For vLLM this is ``num_gpu_blocks`` minus one padding block.
    """

    def __init__(self, block_size: int = 16, capacity: int | None = None) -> None:
        self.block_size = block_size
        self.capacity = capacity
        self._holders: dict[bytes, OrderedDict[int, None]] = {}  # blocks by key, the first one is used
        self._keys: dict[int, bytes] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(capacity or 0))  # the next block to use first
        self._known: set[bytes] = set()  # replaces the others if there is no limit

    def serve(self, prompt: Prompt) -> TokenSources:
        """Simulate a prompt, assuming that everything its plan reuses is kept.

        Raises:
            ConfigError: the prompt is longer than the whole cache.
        """
        plan, n_tokens = prompt.reuse, len(prompt.ids)
        n_cached = self.ask(prompt.ids, salt="" if plan is None else plan.cache_salt)
        end = 0 if plan is None else min(plan.n_prefix_tokens + plan.n_tokens, n_tokens - 1)
        n_loaded = max(0, end - n_cached)
        return TokenSources(n_cached, n_loaded, n_tokens - n_cached - n_loaded)

    def ask(self, ids: Sequence[int] | NDArray[np.int32], output: Sequence[int] = (), *, salt: str = "") -> int:
        """Simulate a request.

        Args:
            ids: the ids of the prompt.
            output: the ids of the answer; all but the last one are also cached.
            salt: requests with different salts share nothing.

        Returns:
            The number of prompt tokens that came from the cache.

        Raises:
            ConfigError: the prompt is longer than the whole cache.
        """
        tokens = np.asarray(ids, dtype=np.int32)
        most = max(len(tokens) - 1, 0) // self.block_size
        if len(output) > 1:
            tokens = np.append(tokens, np.asarray(output[:-1], dtype=np.int32))
        keys = block_keys(tokens, self.block_size, salt)
        if self.capacity is None:
            n_hits = _leading(keys[:most], self._known)
            self._known.update(keys)
            return n_hits * self.block_size
        hits = [next(iter(self._holders[key])) for key in keys[: _leading(keys[:most], self._holders)]]
        for block in hits:
            del self._free[block]
        n_new = -(-len(tokens) // self.block_size) - len(hits)
        if n_new > len(self._free):
            raise ConfigError(f"a request has {len(tokens):,} tokens, but the cache has room for only {self._room:,}")
        blocks = hits + [self._take() for _ in range(n_new)]
        for block, key in zip(blocks[len(hits) :], keys[len(hits) :], strict=False):
            self._keys[block] = key
            self._holders.setdefault(key, OrderedDict())[block] = None
        if len(blocks) > len(keys):
            self._free[blocks[-1]] = None
            self._free.move_to_end(blocks.pop(), last=False)
        self._free.update(dict.fromkeys(reversed(blocks)))
        return len(hits) * self.block_size

    @property
    def _room(self) -> int:
        return (self.capacity or 0) * self.block_size

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        if (key := self._keys.pop(block, None)) is not None:
            holders = self._holders[key]
            del holders[block]
            if not holders:
                del self._holders[key]
        return block


def block_keys(ids: Sequence[int] | NDArray[np.int32], block_size: int, salt: str = "") -> list[bytes]:
    """The keys of the full blocks; each depends on all tokens up to the end of its block."""
    content = np.ascontiguousarray(ids, dtype=np.int32).tobytes()
    size, key, keys = 4 * block_size, salt.encode(), []
    for end in range(size, len(content) + 1, size):
        key = blake2b(key + content[end - size : end], digest_size=16).digest()
        keys.append(key)
    return keys


def _leading(keys: Sequence[bytes], known: set[bytes] | dict[bytes, OrderedDict[int, None]]) -> int:
    """The number of known keys before the first unknown one."""
    return next((n for n, key in enumerate(keys) if key not in known), len(keys))
