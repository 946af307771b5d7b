"""Position bias: how much the order of two answers influences a judge, where judgements record the order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ragalign.comparisons.judged import Judged
from ragalign.judging.base import Verdict
from ragalign.statistics import Estimate, mean, position_bias, proportion


@dataclass(frozen=True, slots=True)
class Position:
    """Position bias of a judge on one model's comparisons; figures in percent.

    Attributes:
        consistency: comparisons with the same outcome in both orders; None if each was judged in one order only.
        first_position_rate: judgements that prefer the answer shown first, ties left out; 50 means no bias.
        shown_first, shown_second: the mean preference for the model when its answer was shown first, or second.
        n_ties: judgements that prefer neither answer.
    """

    consistency: Estimate | None
    first_position_rate: Estimate
    shown_first: Estimate
    shown_second: Estimate
    n_ties: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "consistency": self.consistency.to_dict() if self.consistency else None,
            "first_position_rate": self.first_position_rate.to_dict(),
            "shown_first": self.shown_first.to_dict(),
            "shown_second": self.shown_second.to_dict(),
            "n_ties": self.n_ties,
        }


def position(judged: Sequence[Judged]) -> Position | None:
    """Position bias; None unless the model was shown first in some comparisons and second in others.

    If the model is always shown first, bias cannot be told from a preference for its answers. With one order per
    comparison the orders must be random, as in AlpacaEval and URIAL.
    """
    orders = [(answer.prompt, order) for answer in judged for order in answer.orders if order.swapped is not None]
    if len({order.swapped for _, order in orders}) < 2:
        return None
    model_first, model_second = (_all_decisions(orders, swapped) for swapped in (False, True))
    pairs = [answer for answer in judged if len(answer.orders) == 2]
    if len(pairs) * 2 == len(orders):
        bias = position_bias(*_paired(pairs))
        rate, consistency, n_ties = bias.first_position_rate, bias.consistency.scaled(100), bias.n_ties
    else:
        towards_first = model_first + [(None if value is None else 1 - value, prompt) for value, prompt in model_second]
        decided = [(value, prompt) for value, prompt in towards_first if value != 0.5]
        chosen = [None if value is None else value > 0.5 for value, _ in decided]
        rate = proportion(chosen, [prompt for _, prompt in decided])
        consistency, n_ties = None, len(towards_first) - len(decided)
    return Position(consistency, rate.scaled(100), _percent(model_first), _percent(model_second), n_ties)


def _decisions(order: Verdict) -> dict[str, float | None]:
    """A verdict's decisions from 0 to 1: its preference or its aspects; a single None if it is unscored."""
    if order.preference is None and order.is_scored:
        return dict(order.scores)
    return {"preference": order.preference}


def _all_decisions(orders: Sequence[tuple[str, Verdict]], swapped: bool) -> list[tuple[float | None, str]]:
    chosen = [(prompt, order) for prompt, order in orders if order.swapped is swapped]
    return [(value, prompt) for prompt, order in chosen for value in _decisions(order).values()]


def _paired(pairs: Sequence[Judged]) -> tuple[list[float | None], list[float | None], list[str]]:
    """Decisions with the model shown first, the same with the model shown second, and their prompts."""
    first: list[float | None] = []
    second: list[float | None] = []
    prompts: list[str] = []
    for answer in pairs:
        by_order = {order.swapped: _decisions(order) for order in answer.orders}
        names = dict.fromkeys(name for decisions in by_order.values() for name in decisions)
        if len(names) > 1:
            names.pop("preference", None)  # the unscored order of a verdict on aspects
        first += [by_order[False].get(name) for name in names]
        second += [by_order[True].get(name) for name in names]
        prompts += [answer.prompt] * len(names)
    return first, second, prompts


def _percent(decisions: Sequence[tuple[float | None, str]]) -> Estimate:
    return mean([value for value, _ in decisions], [prompt for _, prompt in decisions]).scaled(100)
