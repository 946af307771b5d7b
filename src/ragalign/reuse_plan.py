"""What of a prompt is reused, as it travels with a request to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ragalign.errors import DataError


@dataclass(frozen=True, slots=True)
class ReusePlan:
    """Which tokens of a prompt need not be computed.

    Attributes:
        key: of the store whose keys and values are meant.
        n_prefix_tokens: tokens in front, special ones included, which every piece was computed behind.
        lengths: tokens of each reused demonstration, in order, directly behind the prefix.
        keep: where not empty, nothing is reused: the only demonstration, or the prefix if there is none, is computed
            and kept. A word that no other such request has.
    """

    key: str
    n_prefix_tokens: int
    lengths: tuple[int, ...] = ()
    keep: str = ""

    @property
    def n_tokens(self) -> int:
        """Tokens of all reused demonstrations together."""
        return sum(self.lengths)

    @property
    def cache_salt(self) -> str:
        """What keeps the engine's cached blocks apart from those of other requests.

        Blocks behind reused demonstrations are approximate, so plain requests must not read them. The number of
        demonstrations is in it since one that is reused in one prompt can be computed in another that begins alike;
        with as many of them, equal tokens have equal keys and values, and the prefix is shared.
        """
        if self.keep:
            return f"ragalign-keep-{self.keep}"
        return f"ragalign-{self.key}-{len(self.lengths)}"

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
        """Read what `params` has made, from its field "ragalign".

        Raises:
            DataError: it is something else.
        """
        if isinstance(plan, Mapping):
            key, prefix, lengths, keep = (plan.get(name) for name in ("key", "prefix", "lengths", "keep"))
            numbers = [prefix, *lengths] if isinstance(lengths, list | tuple) else [None]
            whole = [number for number in numbers if type(number) is int and number >= 0]
            if isinstance(key, str) and isinstance(keep, str) and len(whole) == len(numbers):
                return cls(key, whole[0], tuple(whole[1:]), keep)
        raise DataError("its plan is malformed")
