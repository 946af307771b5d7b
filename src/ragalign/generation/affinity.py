"""Which of several servers should answer a prompt: one that has computed its beginning before.

Prompts that begin alike get the same key, and a key ranks the servers by rendezvous hashing (Thaler and Ravishankar,
"Using name-based mappings to increase hit rates", IEEE/ACM Transactions on Networking 6, 1998): the score of a server
is a hash of key and server, and the highest score wins. No state is needed, so all instances of `ragalign serve` agree,
and a server that leaves or joins moves only its own share of the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from ragalign.types import Prompt

# Requests that a server can have in excess of the least busy one before its keys overflow. In `benchmarks/affinity.py`,
# more saves few further tokens, while skewed load makes the slowest answers slower.
DEFAULT_MARGIN = 4
# Tokens of a prompt without demonstrations and conversation, such as a plain completion request.
_OPENING_TOKENS = 64


def affinity_key(prompt: Prompt) -> str:
    """The name of a prompt's beginning, 32 hex digits; equal for prompts that should share a server's prefix cache.

    The beginning ends with the first retrieved demonstration. Planned prompts with the same leading demonstrations
    share it, and so do the turns of a conversation while its first retrieved demonstration stays. Without retrieved
    demonstrations, it is the constants and the conversation's first question, since every server soon has the constants
    themselves.
    """
    # The retriever `fixed` scores its demonstrations 0: like constants, they are the same in every prompt.
    retrieved = next((used for used in prompt.demonstrations if used.score), None)
    constant = [used for used in prompt.demonstrations if not used.score]
    opening = ""
    if retrieved is not None:
        end = retrieved.span.stop
    elif prompt.opening:
        end = constant[-1].span.stop if constant else prompt.n_special_tokens + prompt.n_preamble_tokens
        opening = prompt.opening
    else:
        end = _OPENING_TOKENS
    salt = prompt.reuse.cache_salt if prompt.reuse is not None and not prompt.reuse.keep else ""
    digest = blake2b(np.ascontiguousarray(prompt.ids[:end], dtype=np.int32).tobytes(), digest_size=16)
    digest.update(f"\0{salt}\0{opening}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def ranked(key: str, servers: Sequence[str]) -> list[int]:
    """The positions of `servers`, best first for this key."""
    scores = [blake2b(f"{key}\0{server}".encode(), digest_size=8).digest() for server in servers]
    return sorted(range(len(servers)), key=lambda position: (scores[position], position), reverse=True)
