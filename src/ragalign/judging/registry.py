"""The judging protocols by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragalign.errors import ConfigError
from ragalign.judging.base import Protocol
from ragalign.judging.files import read_rows
from ragalign.judging.protocols.alpaca_eval import AlpacaEval1, AlpacaEval2
from ragalign.judging.protocols.arena_hard import ArenaHard
from ragalign.judging.protocols.ica import Ica
from ragalign.judging.protocols.instructions import IfBench, IfEval
from ragalign.judging.protocols.just_eval import JustEval
from ragalign.judging.protocols.mt_bench import MtBench
from ragalign.judging.protocols.mt_bench_pairwise import MtBenchPairwise
from ragalign.judging.protocols.reward import Reward, RewardPairwise
from ragalign.judging.protocols.urial_pairwise import UrialPairwise

PROTOCOLS: Mapping[str, type[Protocol]] = {
    "ica": Ica,
    "alpaca-eval-1": AlpacaEval1,
    "alpaca-eval-2": AlpacaEval2,
    "mt-bench": MtBench,
    "mt-bench-pairwise": MtBenchPairwise,
    "just-eval": JustEval,
    "urial-pairwise": UrialPairwise,
    "arena-hard": ArenaHard,
    "ifeval": IfEval,
    "ifbench": IfBench,
    "reward": Reward,
    "reward-pairwise": RewardPairwise,
}


def make_protocol(name: str, **options: Any) -> Protocol:
    """Create a protocol.

    Args:
        name: a key of `PROTOCOLS`.
        options: arguments of the protocol's class, such as `strict` and `prompt_file`.

    Raises:
        ConfigError: the protocol is unknown, or does not take an option.
    """
    protocol = PROTOCOLS.get(name)
    if protocol is None:
        raise ConfigError(f"unknown protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
    known = inspect.signature(protocol).parameters
    if unknown := [option for option in options if option not in known]:
        raise ConfigError(f"the protocol {name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return protocol(**options)


def protocol_of_file(name: str, path: str | Path) -> str:
    """The protocol of a judgement file; for ``mt-bench`` it can also be ``mt-bench-pairwise``.

    Raises:
        DataError: the file cannot be read.
    """
    if name != "mt-bench":
        return name
    first = next((row.value for row in read_rows(path) if row.value is not None), {})
    return "mt-bench-pairwise" if "model_1" in first else name
