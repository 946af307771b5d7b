"""Settings of the packer: the table ``[packing]`` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ragalign.errors import ConfigError

Order = Literal["most_similar_last", "most_similar_first", "random"]
WhenFull = Literal["stop", "skip"]


@dataclass(frozen=True, slots=True)
class Packing:
    """Settings of the packer. The default limits are those of in-context alignment (Han 2023), which does not refill.

    Attributes:
        max_demonstrations: maximum demonstrations in a prompt, constant ones included.
        max_tokens: maximum tokens of all demonstrations together, without preamble and conversation.
        max_demonstration_tokens: longer candidates are skipped; constant demonstrations can be longer.
        when_full: at the first candidate that does not fit, "stop", or "skip" it and try the next.
        refill: retrieve more candidates to replace skipped ones, until all places are taken or the pool ends. If tokens
            are the limit, at most 1,024 candidates are tried.
        order: order of the retrieved demonstrations.
    """

    max_demonstrations: int = 20
    max_tokens: int = 3000
    max_demonstration_tokens: int = 500
    when_full: WhenFull = "stop"
    refill: bool = True
    order: Order = "most_similar_last"

    def __post_init__(self) -> None:
        for name in ("max_demonstrations", "max_tokens", "max_demonstration_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"packing: {name} must be 0 or more, not {getattr(self, name)}")
        for name, choices in (("when_full", get_args(WhenFull)), ("order", get_args(Order))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"packing: {name} is {getattr(self, name)!r}; use one of {', '.join(choices)}")
