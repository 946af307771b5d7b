"""Groups verdicts by model, merges both orders, and counts unscored verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ragalign.judging.base import Figures, Observations, Verdict

_T = TypeVar("_T")


def group(values: Iterable[_T], key: Callable[[_T], Hashable]) -> list[list[_T]]:
    """Group values by a key, in order of first appearance."""
    groups: dict[Hashable, list[_T]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return list(groups.values())


def line(verdict: Verdict) -> tuple[Hashable, ...]:
    """The key of a table line: model, baseline, judge and file.

    The file is included because upstream files have one model each, and some name the wrong model.
    """
    return verdict.model, verdict.baseline, verdict.judge, verdict.metadata.get("source")


def unit(verdict: Verdict) -> Hashable:
    """The key of a judged answer, the same for both orders."""
    return (*line(verdict), verdict.item_id, verdict.sample, verdict.turn)


def merge_orders(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Merge the verdicts of comparisons judged in both orders; other verdicts are not changed.

    The merged preference and scores are the means of the two orders, which cancels a constant bias towards
    a position. If either order is unscored, so is the comparison.
    """
    merged = []
    for pair in group(verdicts, unit):
        if {verdict.swapped for verdict in pair} != {False, True} or len(pair) != 2:
            merged += pair
            continue
        first, second = pair
        if missing := [verdict for verdict in pair if not verdict.is_scored]:
            merged.append(replace(missing[0], swapped=None, reason=f"one of both orders: {missing[0].reason}"))
            continue
        names = [name for name in first.scores if name in second.scores]
        scores = {name: (first.scores[name] + second.scores[name]) / 2 for name in names}
        both = first.preference is not None and second.preference is not None
        preference = (first.preference + second.preference) / 2 if both else None  # type: ignore[operator]
        merged.append(replace(first, swapped=None, scores=scores, preference=preference))
    return merged


def split_scored(verdicts: Iterable[Verdict]) -> tuple[list[Verdict], Mapping[str, int]]:
    """The scored verdicts, and the reasons of the unscored ones with counts."""
    verdicts = list(verdicts)
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.reason is not None)
    return [verdict for verdict in verdicts if verdict.is_scored], dict(reasons.most_common())


def figures(
    protocol: str,
    verdicts: Sequence[Verdict],
    values: Mapping[str, Any],
    observations: Mapping[str, Observations],
    notes: Iterable[str] = (),
    *,
    averages: Mapping[str, tuple[str, ...]] | None = None,
    resampled: Mapping[str, tuple[float, ...]] | None = None,
) -> Figures:
    """Create `Figures` with counts, reasons and names taken from the verdicts."""
    scored, reasons = split_scored(verdicts)
    files = (verdict.metadata.get("source") for verdict in verdicts)
    return Figures(
        protocol=protocol,
        model=verdicts[0].model,
        judge=names(verdict.judge for verdict in verdicts),
        baseline=names(verdict.baseline or "" for verdict in verdicts) or None,
        n=len(scored),
        n_unscored=len(verdicts) - len(scored),
        values=values,
        reasons=reasons,
        notes=tuple(notes),
        files=tuple(dict.fromkeys(file for file in files if isinstance(file, str))),
        observations=observations,
        averages=averages or {},
        resampled=resampled or {},
    )


def observe(
    verdicts: Iterable[Verdict], value: Callable[[Verdict], float | None], *, is_share: bool = False
) -> Observations:
    """One observation per verdict; verdicts that are unscored or without a value (None) are counted as unscored."""
    verdicts = list(verdicts)
    scored = [verdict for verdict in verdicts if verdict.is_scored]
    pairs = [(verdict.item_id, number) for verdict in scored if (number := value(verdict)) is not None]
    prompts, values = tuple(prompt for prompt, _ in pairs), tuple(number for _, number in pairs)
    return Observations(prompts, values, len(verdicts) - len(pairs), is_share)


def mean(observations: Observations) -> float | None:
    """The mean of the observations; None if there are none."""
    return sum(observations.values) / len(observations.values) if observations.values else None


def names(values: Iterable[str]) -> str:
    """Join distinct names with commas, in order of first appearance."""
    return ", ".join(dict.fromkeys(value for value in values if value))
