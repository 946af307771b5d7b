"""What is measured of every judged answer, the same for all models of a comparison, and its estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ragalign.comparisons.computed import COMPUTED, is_pairwise
from ragalign.comparisons.judged import Judged
from ragalign.judging.protocols.just_eval import GENERAL_ASPECTS
from ragalign.statistics import Estimate, bootstrap, mean
from ragalign.statistics.bootstrap import DEFAULT_RESAMPLES, method_name

PREFERENCE = "preference"
ASPECTS = "aspects"
# Scores from 0 to 1 that are shown in percent.
_SHARES = ("exact_match", "prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
_LABELS = {
    "nll": "NLL per token, nats",
    "nll_first32": "NLL of the first 32 tokens, nats",
    "bits_per_token": "Bits per token",
    "prompt_strict": "Prompts followed, strict",
    "prompt_loose": "Prompts followed, loose",
    "instruction_strict": "Instructions followed, strict",
    "instruction_loose": "Instructions followed, loose",
}

ValuesByPrompt: TypeAlias = tuple[list[float | None], list[str]]
"""One value per observation (None is unscored), and the prompt of each."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One thing that is measured.

    Attributes:
        name: in JSON.
        label: for people.
        unit: ``%`` or ``points``.
        value: of a scored answer; None where it has none.
        applies: whether the metric is about an answer at all, such as its second turn.
        parts: the metrics whose unweighted mean this is; empty for others.
        is_aspect: whether it is one of several aspects of the same answers.
        is_computed: whether a program computed it, beside which others may have computed theirs.
        lower_is_better: whether a lower value is a better one.
    """

    name: str
    label: str
    unit: str
    value: Callable[[Judged], float | None]
    applies: Callable[[Judged], bool] = lambda judged: True
    parts: tuple[Metric, ...] = ()
    is_aspect: bool = False
    is_computed: bool = False
    lower_is_better: bool = False

    def observe(self, judged: Sequence[Judged]) -> ValuesByPrompt:
        """The metric's values; unscored answers are None."""
        chosen = [one for one in judged if self.applies(one)]
        values = [self.value(one) if one.verdict.is_scored else None for one in chosen]
        return values, [one.prompt for one in chosen]

    def estimate(self, judged: Sequence[Judged]) -> Estimate:
        """The mean with a bootstrap interval over prompts."""
        if self.parts:
            return mean_of_means([part.observe(judged) for part in self.parts])
        return mean(*self.observe(judged))

    def differences(self, first: Sequence[Judged], second: Sequence[Judged]) -> list[ValuesByPrompt]:
        """First minus second on the prompts of both, one list per part.

        Samples of a prompt have no partner in the other model, so each side's are averaged.
        """
        return [_differences(part, first, second) for part in self.parts or (self,)]


def metrics(protocol: str, judged: Sequence[Judged]) -> list[Metric]:
    """What a protocol measures, the headline first."""
    found: list[Metric] = []
    if any(one.verdict.preference is not None for one in judged):
        found.append(Metric(PREFERENCE, "Mean preference", "%", _preference))
    names = list(dict.fromkeys(name for one in judged for name in one.verdict.scores))
    if protocol in ("just-eval", "urial-pairwise"):
        known = [name for name in (*GENERAL_ASPECTS, "safety") if name in names]
        aspects = tuple(
            _aspect(protocol, name, judged) for name in known + [name for name in names if name not in known]
        )
        if len(aspects) > 1:
            found.append(Metric(ASPECTS, "Mean of aspects", aspects[0].unit, lambda one: None, parts=aspects))
        return [*found, *aspects]
    if protocol == COMPUTED:
        about = [one.verdict.metadata for one in judged]
        named = [name for metadata in about for name in metadata.get("metrics", ())]
        lower = {name for metadata in about for name in metadata.get("lower_is_better", ())}
        in_order = list(dict.fromkeys([*(name for name in named if name in names), *names]))
        return [_computed(name, lower_is_better=name in lower) for name in in_order]
    labels = {"score": "Mean score", "model": "Score", "baseline": "Score of the baseline"}
    found += [Metric(name, labels.get(name, name), "points", _score(name)) for name in names]
    turns = sorted({one.verdict.turn for one in judged})
    if len(turns) > 1 and found:
        found += [
            replace(found[0], name=f"turn_{turn}", label=f"Turn {turn}", applies=_in_turn(turn)) for turn in turns
        ]
    return found


def mean_of_means(parts: Sequence[ValuesByPrompt]) -> Estimate:
    """The unweighted mean of several means, with a bootstrap interval over the prompts of all of them.

    `n` counts the values of all parts. A resample without any value of a part has no figure.
    """
    prompts = list(dict.fromkeys(prompt for values, owners in parts for prompt in _scored(values, owners)))
    position = {prompt: number for number, prompt in enumerate(prompts)}
    totals = np.zeros((len(prompts), len(parts)))
    counts = np.zeros((len(prompts), len(parts)))
    for column, (values, owners) in enumerate(parts):
        for value, owner in zip(values, owners, strict=True):
            if value is not None:
                totals[position[owner], column] += value
                counts[position[owner], column] += 1

    def figure(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return np.asarray(((weights @ totals) / (weights @ counts)).mean(axis=1))

    low, high = bootstrap(figure, len(prompts))
    n_unscored = sum(value is None for values, _ in parts for value in values)
    return Estimate(
        value=float(figure(np.ones((1, len(prompts))))[0]) if prompts else math.nan,
        low=low,
        high=high,
        n=int(counts.sum()),
        n_unscored=n_unscored,
        method=method_name(DEFAULT_RESAMPLES),
        n_prompts=len(prompts),
    )


def outcome(percent: float | None) -> str | None:
    """``win``, ``tie`` or ``lose`` by a preference in percent; None without one."""
    if percent is None:
        return None
    return "tie" if percent == 50 else "win" if percent > 50 else "lose"


def scale_of(protocol: str) -> tuple[float, float] | None:
    """The ends of the scale of a protocol's scores; None where it has none or they are shares."""
    return {"ica": (1.0, 10.0), "mt-bench": (1.0, 10.0), "just-eval": (1.0, 5.0)}.get(protocol)


def _differences(metric: Metric, first: Sequence[Judged], second: Sequence[Judged]) -> ValuesByPrompt:
    one, other = _by_prompt(metric, first), _by_prompt(metric, second)
    shared = [key for key in one if key in other]
    values = [None if (a := one[key]) is None or (b := other[key]) is None else a - b for key in shared]
    return values, [prompt for prompt, _ in shared]


def _by_prompt(metric: Metric, judged: Sequence[Judged]) -> dict[tuple[str, int], float | None]:
    collected: dict[tuple[str, int], list[float]] = {}
    for one in judged:
        if metric.applies(one):
            value = metric.value(one) if one.verdict.is_scored else None
            collected.setdefault((one.prompt, one.verdict.turn), []).extend([] if value is None else [value])
    return {key: sum(values) / len(values) if values else None for key, values in collected.items()}


def _aspect(protocol: str, name: str, judged: Sequence[Judged]) -> Metric:
    modes = {one.verdict.metadata.get("mode") for one in judged if name in one.verdict.scores}

    def value(one: Judged) -> float | None:
        score = one.verdict.scores.get(name)
        return score if score is None or not is_pairwise(protocol) else 100 * score

    return Metric(
        name,
        name.replace("_", " ").capitalize(),
        "%" if is_pairwise(protocol) else "points",
        value,
        applies=lambda one: one.verdict.metadata.get("mode") in modes,
        is_aspect=True,
    )


def _computed(name: str, *, lower_is_better: bool) -> Metric:
    """Shares are shown in percent; what a user's function returns is in its own unit."""
    label = _LABELS.get(name) or name.replace("_", " ").capitalize()
    if lower_is_better:
        label += " (lower is better)"
    value = _score(name)
    if name in _SHARES:
        return Metric(name, label, "%", _percent(value), is_computed=True)
    return Metric(name, label, "points", value, is_computed=True, lower_is_better=lower_is_better)


def _percent(value: Callable[[Judged], float | None]) -> Callable[[Judged], float | None]:
    def percent(judged: Judged) -> float | None:
        share = value(judged)
        return None if share is None else 100 * share

    return percent


def _preference(judged: Judged) -> float | None:
    preference = judged.verdict.preference
    return None if preference is None else 100 * preference


def _score(name: str) -> Callable[[Judged], float | None]:
    return lambda judged: judged.verdict.scores.get(name)


def _in_turn(turn: int) -> Callable[[Judged], bool]:
    return lambda judged: judged.verdict.turn == turn


def _scored(values: Sequence[float | None], owners: Sequence[str]) -> list[str]:
    return [owner for value, owner in zip(values, owners, strict=True) if value is not None]
