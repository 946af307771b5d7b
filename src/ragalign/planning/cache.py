"""vLLM's prefix cache, simulated: how many tokens of each request would come from it.

As in vLLM 0.32 (``v1/core/block_pool.py`` and ``kv_cache_manager.py``): a prompt's tokens are cut into blocks, and a
full block's key is a hash of its tokens and of the key before it. A request takes the longest run of known blocks from
its beginning, but never its last token, which has to be computed to go on from. Blocks that nobody uses stay until
their room is needed, the least recently used first and of one request the last first; a partial block goes at once.
A block that is computed twice is kept twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError


class PrefixCache:
    """The cache of one engine that answers one request after another.

    Without a limit, or with one that is not reached, requests may as well run side by side: a block is known from
    the moment that its request is scheduled. Near the limit, requests that run at the same time hold more.

    Args:
        block_size: tokens per block.
        capacity: blocks that the engine has room for; None for no limit. vLLM's ``num_gpu_blocks`` less one, which
            it keeps for padding.
    """

    def __init__(self, block_size: int = 16, capacity: int | None = None) -> None:
        self.block_size = block_size
        self.capacity = capacity
        self._holders: dict[bytes, OrderedDict[int, None]] = {}  # blocks by key, first come first used
        self._keys: dict[int, bytes] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(capacity or 0))  # next to be used first
        self._known: set[bytes] = set()  # instead of all these where there is no limit

    def ask(self, ids: Sequence[int] | NDArray[np.int32], output: Sequence[int] = ()) -> int:
        """Answer a request.

        Args:
            ids: of the prompt.
            output: ids of the answer; all but the last of them are in the cache afterwards too.

        Returns:
            How many tokens of the prompt came from the cache.

        Raises:
            ConfigError: the prompt is longer than the whole cache.
        """
        tokens = np.asarray(ids, dtype=np.int32)
        most = max(len(tokens) - 1, 0) // self.block_size
        if len(output) > 1:
            tokens = np.append(tokens, np.asarray(output[:-1], dtype=np.int32))
        keys = block_keys(tokens, self.block_size)
        if self.capacity is None:
            n_hits = _leading(keys[:most], self._known)
            self._known.update(keys)
            return n_hits * self.block_size
        hits = [next(iter(self._holders[key])) for key in keys[: _leading(keys[:most], self._holders)]]
        for block in hits:
            del self._free[block]
        n_new = -(-len(tokens) // self.block_size) - len(hits)
        if n_new > len(self._free):
            raise ConfigError(f"a request of {len(tokens):,} tokens; the cache has room for {self._room:,}")
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


def block_keys(ids: Sequence[int] | NDArray[np.int32], block_size: int) -> list[bytes]:
    """A key for each full block, which depends on all tokens up to its end."""
    content = np.ascontiguousarray(ids, dtype=np.int32).tobytes()
    size, key, keys = 4 * block_size, b"", []
    for end in range(size, len(content) + 1, size):
        key = blake2b(key + content[end - size : end], digest_size=16).digest()
        keys.append(key)
    return keys


def _leading(keys: Sequence[bytes], known: set[bytes] | dict[bytes, OrderedDict[int, None]]) -> int:
    """How many keys are known before the first that is not."""
    return next((n for n, key in enumerate(keys) if key not in known), len(keys))
