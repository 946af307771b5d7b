"""Figures of the readings: shares of unshifted, marginal and shifted positions, by position and by token."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign.statistics import Estimate, mean, proportion
from ragalign.statistics.bootstrap import DEFAULT_RESAMPLES, bootstrap, method_name
from ragalign.statistics.estimate import finite_or_none
from ragalign.studies.shift.contexts import SAME
from ragalign.studies.shift.kinds import KINDS, kind_of
from ragalign.studies.shift.record import Place
from ragalign.studies.shift.running import ShiftOutcome

# First positions of the bins, from 1; bins get wider, since most shifts are early.
POSITION_BINS = (1, 2, 3, 5, 9, 17, 33, 65, 129, 257, 513)
RANK_BINS = (1, 2, 3, 4, 11, 101, 1001)
_N_TOKENS = 40


@dataclass(frozen=True, slots=True)
class Bin:
    """Positions `low` to `high` of answers, inclusive; None leaves the bin open."""

    low: int
    high: int | None
    shares: Mapping[str, Estimate]
    kl: float

    @property
    def label(self) -> str:
        """The range as text, such as ``5–8``."""
        return range_label(self.low, self.high)


@dataclass(frozen=True, slots=True)
class TokenShift:
    """A token's shift over all answers: occurrences, shifted occurrences, and the base model's mean probability."""

    text: str
    category: str
    n: int
    n_shifted: int
    probability: float


@dataclass(frozen=True, slots=True)
class ShiftFigures:
    """The figures of a context.

    Attributes:
        context: the context's name.
        n_answers, n_positions: answers and positions read in this context.
        n_elsewhere: tokens left out because the base model's tokenizer splits the text differently.
        shares: shares of positions that are unshifted, marginal and shifted, with intervals over prompts.
        kl: mean divergence in nats.
        probability: mean probability of the aligned model's token.
        closed: the share of the first context's shift that this one closes, on positions read in both: 1 minus
            the ratio of shifted positions; None for the first context.
        by_position: shares by bins of positions.
        ranks: (label, share of positions) for bins of ranks.
        by_category: share of shifted positions by category.
        tokens: the tokens most often shifted.
        n_prompt_tokens, n_demonstrations: means over the prompts.
    """

    context: str
    n_answers: int
    n_positions: int
    n_elsewhere: int
    shares: Mapping[str, Estimate]
    kl: Estimate
    probability: Estimate
    closed: Estimate | None
    by_position: Sequence[Bin]
    ranks: Sequence[tuple[str, float]]
    by_category: Mapping[str, Estimate]
    tokens: Sequence[TokenShift]
    n_prompt_tokens: float
    n_demonstrations: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "context": self.context,
            "n_answers": self.n_answers,
            "n_positions": self.n_positions,
            "n_elsewhere": self.n_elsewhere,
            "shares": {name: share.to_dict() for name, share in self.shares.items()},
            "kl_nats": self.kl.to_dict(),
            "probability": self.probability.to_dict(),
            "closed": None if self.closed is None else self.closed.to_dict(),
            "by_position": [
                {
                    "positions": shift_bin.label,
                    "n": shift_bin.shares["shifted"].n,
                    "shares": {name: shift_bin.shares[name].to_dict() for name in shift_bin.shares},
                    "kl_nats": finite_or_none(shift_bin.kl),
                }
                for shift_bin in self.by_position
            ],
            "ranks": dict(self.ranks),
            "shifted_by_category": {name: share.to_dict() for name, share in self.by_category.items()},
            "most_shifted_tokens": [
                {
                    "token": token.text,
                    "category": token.category,
                    "n": token.n,
                    "n_shifted": token.n_shifted,
                    "probability": round(token.probability, 6),
                }
                for token in self.tokens
            ],
            "mean_prompt_tokens": finite_or_none(round(self.n_prompt_tokens, 1)),
            "mean_demonstrations": finite_or_none(round(self.n_demonstrations, 2)),
        }


@dataclass(frozen=True, slots=True)
class _Row:
    """A position: its query, position in the answer from 1, token, category, and the base model's reading."""

    prompt: str
    position: int
    token: str
    category: str
    place: Place

    @property
    def kind(self) -> str:
        return kind_of(self.place.rank)


def figures(outcome: ShiftOutcome) -> list[ShiftFigures]:
    """The figures of all contexts, the aligned model's own first."""
    rows = {name: _rows(outcome, name) for name in outcome.readings}
    return [_figures(outcome, name, rows[name], rows[SAME]) for name in outcome.readings]


def range_label(low: int, high: int | None) -> str:
    """A range of integers as text, such as ``5–8`` or ``513+``."""
    return f"{low}" if high == low else f"{low}–{high}" if high is not None else f"{low}+"


def _rows(outcome: ShiftOutcome, context: str) -> list[_Row]:
    rows = []
    for answer in outcome.answers:
        reading = outcome.readings[context].get(answer.id)
        for number, place in enumerate(reading.places if reading else ()):
            if place is not None:
                rows.append(_Row(answer.id, number + 1, answer.pieces[number], answer.categories[number], place))
    return rows


def _figures(outcome: ShiftOutcome, context: str, rows: list[_Row], reference: list[_Row]) -> ShiftFigures:
    readings = outcome.readings[context]
    answers = [answer for answer in outcome.answers if answer.token_ids and answer.id in readings]
    prompts = [row.prompt for row in rows]
    return ShiftFigures(
        context=context,
        n_answers=len(answers),
        n_positions=len(rows),
        n_elsewhere=sum(len(answer.token_ids) for answer in answers) - len(rows),
        shares=_shares(rows),
        kl=mean([row.place.kl for row in rows], prompts),
        probability=mean([math.exp(row.place.logprob) for row in rows], prompts),
        closed=None if context == SAME else closed(rows_of(reference), rows_of(rows)),
        by_position=_by_position(rows),
        ranks=_ranks(rows),
        by_category={
            name: proportion([row.kind == "shifted" for row in chosen], [row.prompt for row in chosen])
            for name, chosen in sorted(_grouped(rows).items())
        },
        tokens=_tokens(rows),
        n_prompt_tokens=_mean([readings[answer.id].n_prompt_tokens for answer in answers]),
        n_demonstrations=_mean([readings[answer.id].n_demonstrations for answer in answers]),
    )


def rows_of(rows: Sequence[_Row]) -> dict[tuple[str, int], bool]:
    """Whether positions are shifted, by (query, position)."""
    return {(row.prompt, row.position): row.kind == "shifted" for row in rows}


def closed(
    reference: Mapping[tuple[str, int], bool],
    other: Mapping[tuple[str, int], bool],
    n_resamples: int = DEFAULT_RESAMPLES,
) -> Estimate:
    """The share of shifted positions that the other context closes, minus those that it newly shifts.

    Only positions read in both contexts count; the interval resamples prompts, the same for both contexts.
    """
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    n = 0
    for key, before in reference.items():
        if key in other:
            totals[key[0]][0] += before
            totals[key[0]][1] += other[key]
            n += 1
    counts = np.array(list(totals.values()), dtype=np.float64).reshape(-1, 2)

    def resampled(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        before, after = (weights @ counts).T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(before > 0, 1 - after / before, np.nan))

    value = float(resampled(np.ones((1, len(counts))))[0]) if len(counts) else math.nan
    low, high = bootstrap(resampled, len(counts), n_resamples=n_resamples)
    return Estimate(value, low, high, n, len(reference) - n, method_name(n_resamples), len(counts))


def _shares(rows: Sequence[_Row]) -> dict[str, Estimate]:
    prompts = [row.prompt for row in rows]
    return {kind: proportion([row.kind == kind for row in rows], prompts) for kind in KINDS}


def _by_position(rows: Sequence[_Row]) -> list[Bin]:
    found = []
    for low, high in _bins(POSITION_BINS):
        chosen = [row for row in rows if row.position >= low and (high is None or row.position <= high)]
        if chosen:
            known = [row.place.kl for row in chosen if row.place.kl is not None]
            found.append(Bin(low, high, _shares(chosen), _mean(known)))
    return found


def _ranks(rows: Sequence[_Row]) -> list[tuple[str, float]]:
    ranks = np.array([row.place.rank for row in rows])
    return [
        (range_label(low, high), float(((ranks >= low) & (ranks <= (high or np.inf))).mean()) if len(ranks) else 0.0)
        for low, high in _bins(RANK_BINS)
    ]


def _bins(starts: Sequence[int]) -> list[tuple[int, int | None]]:
    return [*((low, high - 1) for low, high in pairwise(starts)), (starts[-1], None)]


def _grouped(rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    found: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        found[row.category].append(row)
    return found


def _tokens(rows: Sequence[_Row]) -> list[TokenShift]:
    groups: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        groups[row.token].append(row)
    found = [
        TokenShift(
            text=text,
            category=Counter(row.category for row in group).most_common(1)[0][0],
            n=len(group),
            n_shifted=sum(row.kind == "shifted" for row in group),
            probability=_mean([math.exp(row.place.logprob) for row in group]),
        )
        for text, group in groups.items()
    ]
    found.sort(key=lambda token: (-token.n_shifted, -token.n_shifted / token.n, token.text))
    return [token for token in found[:_N_TOKENS] if token.n_shifted]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
