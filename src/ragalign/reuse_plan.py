"""The reused parts of a prompt, as sent to the engine with the request, and what its workers count of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ragalign.errors import DataError


@dataclass(frozen=True, slots=True)
class ReusePlan:
    """Tokens of a prompt whose keys and values are taken from a store instead of being computed.

    Attributes:
        key: the store's key.
        n_prefix_tokens: tokens before the first demonstration, special ones included. All kept demonstrations were
            computed after these.
        lengths: tokens of each reused demonstration, in order. They follow the prefix directly.
        keep: if not empty, a unique name for a request that reuses nothing: its only demonstration, or the prefix if
            there is none, is computed and kept.
    """

    key: str
    n_prefix_tokens: int
    lengths: tuple[int, ...] = ()
    keep: str = ""

    @property
    def n_tokens(self) -> int:
        """The total number of reused tokens."""
        return sum(self.lengths)

    @property
    def cache_salt(self) -> str:
        """The salt that separates the engine's cached blocks from those of other requests.

        Blocks after reused demonstrations are approximate, so plain requests must not read them. The salt includes the
        number of reused demonstrations, since a demonstration that one prompt reuses can be computed in another with
        the same beginning. With equal numbers, equal tokens have equal keys and values, so the prefix can be shared.
        """
        if self.keep:
            return f"ragalign-keep-{self.keep}"
        return f"ragalign-{self.key}-{len(self.lengths)}"

    def accepts(self, salt: str | None) -> bool:
        """Whether a request's salt is `cache_salt`, or one that `own_salt` made from it."""
        return salt is not None and (salt == self.cache_salt or salt.startswith(f"{self.cache_salt}/"))

    def own_salt(self, name: str) -> str:
        """A salt that no other request shares, given a unique name."""
        return f"{self.cache_salt}/{name}"

    def split(self, n_ready: int) -> tuple[int, int]:
        """Of the prompt's first `n_ready` tokens, which were not computed: how many are exact, and how many reused."""
        end = self.n_prefix_tokens + self.n_tokens
        n_reused = max(0, min(n_ready, end) - self.n_prefix_tokens)
        return n_ready - n_reused, n_reused

    def params(self) -> dict[str, Any]:
        """The plan as vLLM's `kv_transfer_params`."""
        plan = {"key": self.key, "prefix": self.n_prefix_tokens, "lengths": list(self.lengths), "keep": self.keep}
        return {"ragalign": plan}

    @classmethod
    def from_params(cls, plan: Any) -> ReusePlan:
        """Read a plan from the field "ragalign" of `params`.

        Raises:
            DataError: it is not a plan.
        """
        if isinstance(plan, Mapping):
            key, prefix, lengths, keep = (plan.get(name) for name in ("key", "prefix", "lengths", "keep"))
            numbers = [prefix, *lengths] if isinstance(lengths, list | tuple) else [None]
            whole = [number for number in numbers if type(number) is int and number >= 0]
            if isinstance(key, str) and isinstance(keep, str) and len(whole) == len(numbers):
                return cls(key, whole[0], tuple(whole[1:]), keep)
        raise DataError("the reuse plan is malformed")


def merged_counts(workers: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The reuse connector's counts over all workers: bytes add up, while all load the same pieces and tokens."""
    merged: dict[str, int] = {}
    for counts in workers:
        for name, value in counts.items():
            before = merged.get(name, 0)
            merged[name] = before + value if name.startswith("bytes") else max(before, value)
    return merged
