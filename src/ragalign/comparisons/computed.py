"""Verdicts without a judge: scores computed from an answer, such as an exact match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ragalign.errors import ConfigError, DataError
from ragalign.judging.base import Decision, Figures, Judgement, Observations, Protocol, Verdict
from ragalign.judging.protocols.grouping import group, split_scored
from ragalign.judging.protocols.length_control_files import load_length_control
from ragalign.judging.registry import PROTOCOLS, make_protocol
from ragalign.judging.requests import Item, Json, JudgeReply, JudgeRequest

COMPUTED = "metric"
"""The protocol's name in verdicts."""


class Computed(Protocol):
    """Averages computed scores. There is no judge to ask, and no upstream file format."""

    name = COMPUTED
    is_pairwise = False
    file_format = "jsonl"

    def build(self, item: Item) -> list[JudgeRequest]:
        """Not supported.

        Raises:
            ConfigError: always; computed scores need no judge.
        """
        raise ConfigError("metric scores are computed; they need no judge")

    def read(self, request: JudgeRequest, reply: JudgeReply) -> Decision:
        """Not supported, see `build`."""
        raise ConfigError("metric scores are computed; they need no judge")

    def aggregate(self, verdicts: Sequence[Verdict]) -> list[Figures]:
        """The mean of every score, one `Figures` per model."""
        return [self._figures(members) for members in group(verdicts, lambda verdict: verdict.model)]

    def replay(self, row: Json, position: int, source: str) -> list[Verdict]:
        """Not supported.

        Raises:
            DataError: always; no upstream tool writes such rows.
        """
        raise DataError("metric scores have no upstream file format")

    def record(self, judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
        """No rows: no upstream tool reads computed scores."""
        return []

    def _figures(self, verdicts: Sequence[Verdict]) -> Figures:
        scored, reasons = split_scored(verdicts)
        names = dict.fromkeys(name for verdict in scored for name in verdict.scores)
        known = {
            name: [
                (verdict.item_id, verdict.scores[name])
                for verdict in scored
                if name in verdict.scores
                for _ in range(weight(verdict, name))
            ]
            for name in names
        }
        observed = {
            name: Observations(
                tuple(prompt for prompt, _ in known[name]),
                tuple(value for _, value in known[name]),
                # Several metrics score the same answers, and some of them can be unscored where others are not.
                n_unscored=len(verdicts) - sum(name in verdict.scores for verdict in verdicts),
            )
            for name in names
        }
        values = {name: sum(of_metric.values) / len(of_metric.values) for name, of_metric in observed.items()}
        n_unscored = len(verdicts) - len(scored)
        return Figures(
            COMPUTED, verdicts[0].model, "", None, len(scored), n_unscored, values, reasons, observations=observed
        )


def weight(verdict: Verdict, name: str) -> int:
    """How many observations a computed score is the mean of, such as the instructions of a prompt."""
    return int(verdict.metadata.get("weights", {}).get(name, 1))


def protocol_named(name: str) -> Protocol:
    """The protocol that averages verdicts; `COMPUTED` averages those of metrics.

    Raises:
        ConfigError: there is no protocol of this name.
    """
    if name == COMPUTED:
        return Computed()
    return make_protocol(name, **({"length_control": load_length_control("auto")} if name == "alpaca-eval-2" else {}))


def is_pairwise(name: str) -> bool:
    """Whether the protocol compares two answers."""
    return name != COMPUTED and PROTOCOLS[name].is_pairwise
