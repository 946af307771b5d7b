"""The ``[reuse]`` table of a recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ragalign.errors import ConfigError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, slots=True)
class ReuseSettings:
    """Whether and how demonstrations' kept keys and values are put into prompts.

    Attributes:
        enabled: whether to reuse kept keys and values.
        real: number of most similar demonstrations to compute anyway; they come last, before the conversation.
        memory: bytes of host memory for the demonstrations used most recently, such as 8000000000 or "8 GB".
        gpu_memory: the same in GPU memory.
        store: the folder that `ragalign kv build` fills; if empty, one beside the index.

    Raises:
        ConfigError: a value is out of range.
    """

    enabled: bool = False
    real: int = 0
    memory: int | str = "2 GiB"
    gpu_memory: int | str = 0
    store: str = ""

    def __post_init__(self) -> None:
        if self.real < 0:
            raise ConfigError(f"[reuse] real is {self.real}; it must be 0 or more")
        for name in ("memory", "gpu_memory"):
            n_bytes(getattr(self, name), f"[reuse] {name}")


def n_bytes(size: int | str, what: str) -> int:
    """A size in bytes.

    Raises:
        ConfigError: it is negative, or no number with a unit such as KB, MiB or GB.
    """
    if isinstance(size, int):
        if size < 0:
            raise ConfigError(f"{what} is {size}; it must be 0 or more")
        return size
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", size.strip())
    if found is None or found[2].upper() not in _UNITS:
        raise ConfigError(f"{what} is {size!r}; give a number of bytes, or one with a unit, such as '8 GB'")
    return int(float(found[1]) * _UNITS[found[2].upper()])
