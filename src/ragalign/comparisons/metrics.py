"""Metrics of judged answers, the same for all models of a comparison, and their estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ragalign.comparisons.computed import COMPUTED, is_pairwise, weight
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
    """A metric of judged answers.

    Attributes:
        name: the name in JSON.
        label: the display name.
        unit: ``%`` or ``points``.
        value: the metric's value for a scored answer; None if it has none.
        applies: whether the metric covers an answer; a second turn's metric covers second turns only.
        parts: for an unweighted mean of other metrics, those metrics.
        is_aspect: whether the metric is one of several aspects of the same answers.
        is_computed: whether a program computed it, rather than a judge.
        lower_is_better: whether lower values are better.
        weight: how many observations of the same prompt a value is the mean of, such as instructions.
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
    weight: Callable[[Judged], int] = lambda judged: 1

    def observe(self, judged: Sequence[Judged]) -> ValuesByPrompt:
        """The metric's values; unscored answers are None."""
        pairs = [
            (self.value(answer) if answer.verdict.is_scored else None, answer.prompt)
            for answer in judged
            if self.applies(answer)
            for _ in range(self.weight(answer))
        ]
        return [value for value, _ in pairs], [prompt for _, prompt in pairs]

    def estimate(self, judged: Sequence[Judged]) -> Estimate:
        """The mean with a bootstrap interval over prompts."""
        if self.parts:
            return mean_of_means([part.observe(judged) for part in self.parts])
        return mean(*self.observe(judged))

    def differences(self, first: Sequence[Judged], second: Sequence[Judged]) -> list[ValuesByPrompt]:
        """First minus second on the prompts that both have, one list per part.

        Samples of a prompt cannot be paired across models, so they are averaged first.
        """
        return [_differences(part, first, second) for part in self.parts or (self,)]


def metrics(protocol: str, judged: Sequence[Judged]) -> list[Metric]:
    """The metrics of a protocol, the headline first."""
    found: list[Metric] = []
    if any(answer.verdict.preference is not None for answer in judged):
        found.append(Metric(PREFERENCE, "Mean preference", "%", _preference))
    names = list(dict.fromkeys(name for answer in judged for name in answer.verdict.scores))
    if protocol in ("just-eval", "urial-pairwise"):
        known = [name for name in (*GENERAL_ASPECTS, "safety") if name in names]
        aspects = tuple(
            _aspect(protocol, name, judged) for name in known + [name for name in names if name not in known]
        )
        if len(aspects) > 1:
            found.append(Metric(ASPECTS, "Mean of aspects", aspects[0].unit, lambda answer: None, parts=aspects))
        return [*found, *aspects]
    if protocol == COMPUTED:
        about = [answer.verdict.metadata for answer in judged]
        named = [name for metadata in about for name in metadata.get("metrics", ())]
        lower = {name for metadata in about for name in metadata.get("lower_is_better", ())}
        in_order = list(dict.fromkeys([*(name for name in named if name in names), *names]))
        return [_computed(name, lower_is_better=name in lower) for name in in_order]
    labels = {"score": "Mean score", "model": "Score", "baseline": "Score of the baseline"}
    found += [Metric(name, labels.get(name, name), "points", _score(name)) for name in names]
    turns = sorted({answer.verdict.turn for answer in judged})
    if len(turns) > 1 and found:
        found += [
            replace(found[0], name=f"turn_{turn}", label=f"Turn {turn}", applies=_in_turn(turn)) for turn in turns
        ]
    return found


def mean_of_means(parts: Sequence[ValuesByPrompt]) -> Estimate:
    """The unweighted mean of several means, with a bootstrap interval over all their prompts.

    `n` counts the values of all parts. A resample that lacks all values of a part is left out.
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
    """``win``, ``tie`` or ``lose`` for a preference in percent; None without a preference."""
    if percent is None:
        return None
    return "tie" if percent == 50 else "win" if percent > 50 else "lose"


def scale_of(protocol: str) -> tuple[float, float] | None:
    """The ends of a protocol's score scale; None if it has no scores or they are shares."""
    return {"ica": (1.0, 10.0), "mt-bench": (1.0, 10.0), "just-eval": (1.0, 5.0)}.get(protocol)


def _differences(metric: Metric, first: Sequence[Judged], second: Sequence[Judged]) -> ValuesByPrompt:
    by_first, by_second = _by_prompt(metric, first), _by_prompt(metric, second)
    weights = {(answer.prompt, answer.verdict.turn): metric.weight(answer) for answer in first}
    pairs = [
        (None if (a := by_first[key]) is None or (b := by_second[key]) is None else a - b, key[0])
        for key in by_first
        if key in by_second
        for _ in range(weights[key])
    ]
    return [value for value, _ in pairs], [prompt for _, prompt in pairs]


def _by_prompt(metric: Metric, judged: Sequence[Judged]) -> dict[tuple[str, int], float | None]:
    collected: dict[tuple[str, int], list[float]] = {}
    for answer in judged:
        if metric.applies(answer):
            value = metric.value(answer) if answer.verdict.is_scored else None
            collected.setdefault((answer.prompt, answer.verdict.turn), []).extend([] if value is None else [value])
    return {key: sum(values) / len(values) if values else None for key, values in collected.items()}


def _aspect(protocol: str, name: str, judged: Sequence[Judged]) -> Metric:
    modes = {answer.verdict.metadata.get("mode") for answer in judged if name in answer.verdict.scores}

    def value(answer: Judged) -> float | None:
        score = answer.verdict.scores.get(name)
        return score if score is None or not is_pairwise(protocol) else 100 * score

    return Metric(
        name,
        name.replace("_", " ").capitalize(),
        "%" if is_pairwise(protocol) else "points",
        value,
        applies=lambda answer: answer.verdict.metadata.get("mode") in modes,
        is_aspect=True,
    )


def _computed(name: str, *, lower_is_better: bool) -> Metric:
    """Shares are in percent; values of a custom metric keep their own unit."""
    label = _LABELS.get(name) or name.replace("_", " ").capitalize()
    if lower_is_better:
        label += " (lower is better)"
    value = _score(name)
    if name in _SHARES:
        return Metric(
            name,
            label,
            "%",
            _percent(value),
            is_computed=True,
            weight=lambda judged_answer: weight(judged_answer.verdict, name),
        )
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
