"""The report of a run, from its verdicts, costs and factors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ragalign.bench.answers import Answered
from ragalign.bench.costs import costs_of
from ragalign.bench.judging import texts
from ragalign.bench.running import Run
from ragalign.bench.timing import read_timings
from ragalign.errors import ConfigError
from ragalign.judging.base import Verdict
from ragalign.pool import Pool
from ragalign.reports.bench_result import Bench, Factor, Level, Measured, MetricName, Quality, varying
from ragalign.reports.costs import Costs
from ragalign.reports.published import Published
from ragalign.reports.report import Comparison, Report
from ragalign.statistics import Estimate, mean
from ragalign.types import Demonstration


def report_of(
    run: Run,
    verdicts: Sequence[Verdict] = (),
    *,
    baseline: str | None = None,
    fixed: str | None = None,
    title: str | None = None,
    facts: Mapping[str, str] | None = None,
    published: Sequence[Published] = (),
    notes: Sequence[str] = (),
) -> Report:
    """Make the report of a run.

    Args:
        run: the run, with all its answers.
        verdicts: verdicts of judges or metrics; none for a report of cost and speed.
        baseline: the condition to compare the others with; by default the one with fixed demonstrations, or the first.
        fixed: the condition that prices are relative to; by default the first whose demonstrations are fixed.
        title: the report's heading.
        facts: model, prompts, machine and the like, for the head.
        published: published results to show.
        notes: notes for the head.

    Raises:
        ConfigError: no condition has the name of `baseline` or `fixed`.
        DataError: a file of the run is damaged.
    """
    answered = run.answered()
    fixed = named(run, fixed) or next((condition.name for condition in run.conditions if condition.is_fixed), None)
    baseline = named(run, baseline) or fixed or run.conditions[0].name
    pools = _pools(run)
    known = _Known(pools)
    title = title or f"{len(run.conditions)} recipes on {run.cases.name}"
    report = Report(title, ())
    if verdicts:
        report = Report.from_verdicts(
            verdicts, title=title, texts=texts(run.cases, answered), pools=pools, against=baseline
        )
    # With several judges the first is the headline; the report's comparisons have them all.
    comparison = report.comparisons[0] if report.comparisons else None
    timings = read_timings(run.folder)
    if timings is not None and fixed is not None:
        timings = replace(timings, base=fixed)
    costs = costs_of(answered, run.cases, known, timings)
    shown = [metric for metric in comparison.metrics if metric.is_computed] if comparison is not None else []
    shown = shown or (list(comparison.metrics[:1]) if comparison is not None else [])
    bench = Bench(
        facts=facts or {},
        metrics=tuple(MetricName(metric.name, metric.label, metric.unit, metric.lower_is_better) for metric in shown),
        baseline=baseline,
        fixed=fixed,
        conditions=tuple(
            Measured(
                condition.name,
                costs[condition.name],
                {
                    metric.name: quality
                    for metric in shown
                    if (quality := _quality(condition.name, comparison, metric.name)) is not None
                },
                condition.levels or None,
            )
            for condition in run.conditions
        ),
        factors=tuple(_factors(answered, costs, comparison)),
        published=tuple(published),
        timing=timings.summary() if timings else None,
    )
    notes = (*notes, *report.notes, *_notes(bench))
    return replace(report, bench=bench, notes=notes, demonstrations=report.demonstrations or _used(costs, known))


def named(run: Run, name: str | None) -> str | None:
    """Check that a condition of the run has this name; None stays None.

    Raises:
        ConfigError: no condition has it.
    """
    return check_named([condition.name for condition in run.conditions], name)


def check_named(names: Sequence[str], name: str | None) -> str | None:
    """Check that `name` is one of `names`; None stays None.

    Raises:
        ConfigError: no condition has it.
    """
    if name is not None and name not in names:
        raise ConfigError(f"no recipe of this run is called {name!r}; choose one of {', '.join(names)}")
    return name


class _Known(Mapping[str, Demonstration]):
    """The demonstrations of several pools, looked up one at a time, since pools can be large."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._where = {name: pool for pool in pools for name in pool.ids}

    def __getitem__(self, name: str) -> Demonstration:
        return self._where[name].get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where


def _pools(run: Run) -> list[Pool]:
    """The pools of demonstrations: those of the indexes, and the recipes' constant ones."""
    constants = [
        constant.demonstration
        for condition in run.conditions
        for constant in condition.recipe.make_template()[1]
        if constant.demonstration.response
    ]
    return [*(index.pool for index in run.indexes.values()), Pool.from_demonstrations(constants)]


def _used(costs: Mapping[str, Costs], known: Mapping[str, Demonstration]) -> dict[str, Demonstration]:
    return {name: known[name] for cost in costs.values() for name in cost.used if name in known}


def _quality(name: str, comparison: Comparison | None, metric: str) -> Quality | None:
    if comparison is None:
        return None
    model = next((model for model in comparison.models if model.name == name), None)
    if model is None:
        return None
    pair = next(
        (
            difference
            for difference in comparison.differences
            if difference.first == name and difference.metric == metric
        ),
        None,
    )
    return Quality(model.means[metric], pair.estimate if pair else None, pair.test if pair else None)


def _factors(
    answered: Sequence[Answered], costs: Mapping[str, Costs], comparison: Comparison | None
) -> Iterator[Factor]:
    levels = {answers.condition.name: answers.condition.levels for answers in answered if answers.condition.levels}
    for factor, names in varying(list(levels.values())).items():
        members = _balanced(levels, factor, names)
        yield Factor(factor, tuple(_level(level, members[level], costs, comparison) for level in names))


def _balanced(levels: Mapping[str, Mapping[str, str]], factor: str, names: Sequence[str]) -> dict[str, list[str]]:
    """The conditions of each level that have a counterpart in all other levels."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for condition, own in levels.items():
        others = tuple(sorted((name, level) for name, level in own.items() if name != factor))
        groups.setdefault(others, {})[own[factor]] = condition
    whole = [group for group in groups.values() if len(group) == len(names)] or list(groups.values())
    return {level: [group[level] for group in whole if level in group] for level in names}


def _level(name: str, conditions: Sequence[str], costs: Mapping[str, Costs], comparison: Comparison | None) -> Level:
    tokens = [costs[name].prompt_tokens.value for name in conditions]
    estimate: Estimate | None = None
    if comparison is not None and comparison.metrics:
        models = [comparison.verdicts[condition] for condition in conditions if condition in comparison.verdicts]
        judged = [judged_answer for model in models for judged_answer in model.judged]
        estimate = comparison.metrics[0].estimate(judged) if judged else mean([])
    return Level(name, len(conditions), estimate, sum(tokens) / len(tokens))


def _notes(bench: Bench) -> Iterator[str]:
    for condition in bench.conditions:
        costs = condition.costs
        if costs.n_missing:
            yield f"{condition.name}: {costs.n_missing} of {costs.n + costs.n_missing} requests have no answer"
        if costs.n_leaked:
            yield f"{condition.name}: {costs.n_leaked} requests had their own text among their demonstrations"
    timing = bench.timing
    if timing is not None and not timing.is_quiet:
        yield (
            f"the machine was busy: one recipe, timed twice per round, differs from itself by "
            f"{100 * abs(timing.control.ratio - 1):.0f} %; speed and prices are no more exact than that"
        )
    if timing is not None and not timing.empties_cache:
        yield "the engine's prefix cache could not be emptied: prompts may have been cached before they were timed"
