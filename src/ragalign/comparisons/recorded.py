"""Figures of recorded judgements, computed as the upstream tools do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragalign.errors import ConfigError
from ragalign.judging.base import Figures, Verdict
from ragalign.judging.protocols.length_control import LengthControl
from ragalign.judging.registry import make_protocol, protocol_of_file
from ragalign.judging.replay import ReplayProblem, replay


@dataclass(frozen=True, slots=True)
class Recorded:
    """The verdicts and figures of recorded files.

    Attributes:
        figures: one for each model (and judge, if several judged the same answers).
        verdicts: all verdicts behind the figures.
        problems: rows that could not be read; each counts as an unscored verdict.
    """

    figures: tuple[Figures, ...]
    verdicts: tuple[Verdict, ...]
    problems: tuple[ReplayProblem, ...]


def aggregate_files(
    protocol: str,
    files: Sequence[str | Path],
    *,
    strict: bool = False,
    categories: Mapping[str, str] | None = None,
    length_control: LengthControl | None = None,
    prompts: str | Path | None = None,
) -> Recorded:
    """Read judgement files and average them as the upstream tool does.

    Args:
        protocol: the protocol's name; ``mt-bench`` also takes files of pairwise comparisons.
        files: judgement files of the upstream tool.
        strict: leave replies unscored where the upstream tool would guess.
        categories: MT-Bench's categories by question id.
        length_control: AlpacaEval's length control.
        prompts: IFEval's or IFBench's prompts with their instructions.

    Raises:
        ConfigError: the protocol is unknown, or does not take an option.
        DataError: a file cannot be read, or has no judgement of the protocol.
    """
    options: dict[str, Any] = {"strict": strict}
    if categories is not None:
        if protocol != "mt-bench":
            raise ConfigError("question categories apply to the protocol mt-bench only")
        options["categories"] = categories
    if length_control is not None:
        if not protocol.startswith("alpaca-eval"):
            raise ConfigError("length control applies to the protocols alpaca-eval-1 and alpaca-eval-2 only")
        options["length_control"] = length_control
    needs_prompts = protocol in ("ifeval", "ifbench")
    if needs_prompts != (prompts is not None):
        if needs_prompts:
            raise ConfigError(f"the protocol {protocol} needs the prompts with their instructions: give --prompts FILE")
        raise ConfigError("prompts with instructions apply to the protocols ifeval and ifbench only")
    if prompts is not None:
        options["prompts"] = prompts
    figures: list[Figures] = []
    verdicts: list[Verdict] = []
    problems: list[ReplayProblem] = []
    by_protocol: dict[str, list[str | Path]] = {}
    for file in files:
        by_protocol.setdefault(protocol_of_file(protocol, file), []).append(file)
    for name, members in by_protocol.items():
        chosen = make_protocol(name, **(options if name == protocol else {"strict": strict}))
        replayed = replay(chosen, members)
        figures += chosen.aggregate(replayed.verdicts)
        verdicts += replayed.verdicts
        problems += replayed.problems
    return Recorded(tuple(figures), tuple(verdicts), tuple(problems))
