"""The report: verdicts on one or more models, with the uncertainty of every figure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragalign.comparisons.completions import Completions
from ragalign.comparisons.computed import protocol_named
from ragalign.comparisons.differences import Difference, differences, strengths
from ragalign.comparisons.distributions import Distribution, distribution
from ragalign.comparisons.judged import ModelVerdicts, verdicts_by_model
from ragalign.comparisons.metrics import Metric, metrics, scale_of
from ragalign.comparisons.sources import VerdictSource, read_sources
from ragalign.comparisons.summary import Summary, summarise
from ragalign.errors import DataError
from ragalign.judging.base import Verdict
from ragalign.judging.protocols.grouping import group
from ragalign.judging.replay import ReplayProblem
from ragalign.pool import Pool
from ragalign.reports.bench_result import Bench
from ragalign.statistics import BradleyTerry
from ragalign.types import Demonstration


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models under the same protocol, baseline and judge, so comparable in one table.

    Attributes:
        protocol, baseline, judge: what they have in common. MT-Bench's pairs are in one table whatever the
            baseline, which is None then.
        metrics: what is measured, the headline first.
        verdicts: the judged answers by the model's name in the report, best first by the headline.
        models: their figures, in the same order.
        differences: every two models on the same prompts.
        strengths: Bradley-Terry strengths; None with fewer than three systems.
        distributions: of scores and lengths.
    """

    protocol: str
    baseline: str | None
    judge: str
    metrics: tuple[Metric, ...]
    verdicts: Mapping[str, ModelVerdicts]
    models: tuple[Summary, ...]
    differences: tuple[Difference, ...]
    strengths: BradleyTerry | None
    distributions: tuple[Distribution, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "protocol": self.protocol,
            "baseline": self.baseline,
            "judge": self.judge,
            "metrics": [
                {
                    "name": metric.name,
                    "label": metric.label,
                    "unit": metric.unit,
                    "lower_is_better": metric.lower_is_better,
                }
                for metric in self.metrics
            ],
            "models": [model.to_dict() for model in self.models],
            "differences": [difference.to_dict() for difference in self.differences],
            "strengths": self.strengths.to_dict() if self.strengths else None,
            "distributions": [histogram.to_dict() for histogram in self.distributions],
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of an evaluation.

    Attributes:
        title: its heading.
        comparisons: one per protocol, baseline and judge.
        problems: rows that could not be read; each counts as unscored.
        demonstrations: those that the models' prompts held, by id, as far as an index was given.
        notes: what a reader must know, such as answers that fit no verdict.
        bench: what a benchmark measured beside quality.
    """

    title: str
    comparisons: tuple[Comparison, ...]
    problems: tuple[ReplayProblem, ...] = ()
    demonstrations: Mapping[str, Demonstration] | None = None
    notes: tuple[str, ...] = ()
    bench: Bench | None = None

    @classmethod
    def from_files(
        cls,
        paths: Sequence[str | Path],
        *,
        protocol: str | None = None,
        completions: Sequence[str | Path] = (),
        questions: str | Path | None = None,
        index: str | Path | None = None,
        title: str | None = None,
    ) -> Report:
        """Build a report from judgement files.

        Args:
            paths: what `ragalign judge run` wrote (``verdicts.jsonl`` or its folder), or recorded judgements in the
                form of the upstream tools.
            protocol: the protocol of upstream's files, where they do not tell.
            completions: what `ragalign generate` wrote, or any answer files: the texts, and which demonstrations
                were retrieved.
            questions: FastChat's questions, for texts and categories that the other files lack.
            index: the index that the demonstrations came from, to show their texts.
            title: the report's heading.

        Raises:
            ConfigError: the protocol is unknown, or not the one of our own verdicts.
            DataError: a file cannot be read, or holds nothing of use.
            IndexFormatError: the index is missing or damaged.
        """
        sources = read_sources(paths, protocol=protocol, questions=questions)
        texts = Completions.load(completions, questions=questions)
        pools = () if index is None else (_pool_of(index),)
        return _build(sources, texts, title, pools=pools, index=index)

    @classmethod
    def from_verdicts(
        cls,
        verdicts: Sequence[Verdict],
        *,
        title: str | None = None,
        texts: Completions | None = None,
        pools: Sequence[Pool] = (),
        against: str | None = None,
    ) -> Report:
        """Build a report from verdicts of one or several protocols.

        Args:
            verdicts: the verdicts.
            title: the report's heading.
            texts: the answers that verdicts are about; without them the report has no texts.
            pools: where the demonstrations come from.
            against: the model that all others are compared with; by default every two are.

        Raises:
            DataError: there is none.
        """
        by_protocol = group(verdicts, lambda verdict: verdict.protocol)
        sources = [VerdictSource("", members[0].protocol, tuple(members)) for members in by_protocol]
        return _build(sources, texts or Completions(), title, pools=pools, against=against)

    @property
    def n(self) -> int:
        """Scored answers."""
        return sum(model.n for comparison in self.comparisons for model in comparison.models)

    @property
    def n_unscored(self) -> int:
        """Unscored answers."""
        return sum(model.n_unscored for comparison in self.comparisons for model in comparison.models)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: every figure with its interval, no texts."""
        return {
            "title": self.title,
            "n": self.n,
            "n_unscored": self.n_unscored,
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "problems": [{"where": problem.where, "reason": problem.reason} for problem in self.problems],
            "notes": list(self.notes),
            **({"bench": self.bench.to_dict()} if self.bench else {}),
        }


def _build(
    sources: Sequence[VerdictSource],
    texts: Completions,
    title: str | None,
    *,
    pools: Sequence[Pool] = (),
    index: str | Path | None = None,
    against: str | None = None,
) -> Report:
    found = verdicts_by_model(sources, texts)
    if not found:
        raise DataError("a report needs at least one verdict")
    comparisons = tuple(_compare(members, against) for members in group(found, _table))
    used = {
        demonstration
        for line in found
        for judged_answer in line.judged
        if judged_answer.texts.demonstrations is not None
        for demonstration in judged_answer.texts.demonstrations
    }
    demonstrations, notes = _look_up(used, pools, index)
    return Report(
        title=title or _title(found),
        comparisons=comparisons,
        problems=tuple(problem for source in sources for problem in source.problems),
        demonstrations=demonstrations,
        notes=(*_repeated(found), *_unmatched(found, texts), *notes),
    )


def _table(line: ModelVerdicts) -> tuple[str, str | None, str]:
    return line.protocol, None if line.protocol == "mt-bench-pairwise" else line.baseline, line.judge


def _compare(members: Sequence[ModelVerdicts], against: str | None) -> Comparison:
    protocol, baseline, judge = _table(members[0])
    judged = [judged_answer for line in members for judged_answer in line.judged]
    measured = metrics(protocol, judged)
    how = protocol_named(protocol)
    named = dict(zip(_names(members), members, strict=True))
    models = [summarise(name, line, measured, how) for name, line in named.items()]
    if measured:
        models.sort(key=lambda model: _rank(model.means[measured[0].name].value, measured[0]))
    ordered = {model.name: named[model.name] for model in models}
    return Comparison(
        protocol=protocol,
        baseline=baseline,
        judge=judge,
        metrics=tuple(measured),
        verdicts=ordered,
        models=tuple(models),
        differences=tuple(differences(ordered, measured, against=against)),
        strengths=strengths(ordered),
        distributions=tuple(_distributions(protocol, ordered, measured)),
    )


def _rank(value: float, metric: Metric) -> float:
    """A sort key: better models first, those without a figure last."""
    return math.inf if math.isnan(value) else value if metric.lower_is_better else -value


def _names(members: Sequence[ModelVerdicts]) -> list[str]:
    """Unique names: the model's, with the baseline or the file where it occurs several times."""
    names = [line.model or "unnamed" for line in members]
    marks = (
        [f"against {line.baseline}" for line in members],
        [", ".join(Path(file).parent.name or Path(file).stem for file in line.files) for line in members],
        [", ".join(line.files) for line in members],
    )
    for mark in marks:
        repeated = {name for name, count in Counter(names).items() if count > 1}
        tells = [(name, value) for name, value in zip(names, mark, strict=True) if name in repeated]
        if len(set(tells)) == len(tells):
            names = [f"{name} ({value})" if name in repeated else name for name, value in zip(names, mark, strict=True)]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, start=1)]


def _distributions(protocol: str, named: Mapping[str, ModelVerdicts], measured: Sequence[Metric]) -> list[Distribution]:
    found = []
    for metric in measured:
        if metric.parts or metric.name.startswith("turn_"):
            continue
        observed = {
            name: [value for value in metric.observe(line.judged)[0] if value is not None]
            for name, line in named.items()
        }
        scale = scale_of(protocol) if metric.unit == "points" else None
        label = metric.label.removeprefix("Mean ").capitalize()
        found.append(distribution(metric.name, label, metric.unit, observed, scale=scale))
    for label, unit in (("n_words", "words"), ("n_characters", "characters")):
        lengths = {
            name: [getattr(judged_answer, label) for judged_answer in line.judged] for name, line in named.items()
        }
        known = {name: [float(value) for value in values if value is not None] for name, values in lengths.items()}
        if all(known.values()):
            found.append(distribution(label, "Length of the answers", unit, known, has_tail=True))
            break
    return [candidate for candidate in found if candidate is not None]


def _title(found: Sequence[ModelVerdicts]) -> str:
    protocols = ", ".join(dict.fromkeys(line.protocol for line in found))
    names = list(dict.fromkeys(line.model for line in found))
    return f"{names[0]}: {protocols}" if len(names) == 1 else f"{len(names)} models: {protocols}"


def _part(verdict: Verdict) -> tuple[object, ...]:
    """The origin of a recorded verdict, since files and rows can use the same ids."""
    return tuple(verdict.metadata.get(key) for key in ("source", "row", "mode"))


def _repeated(found: Sequence[ModelVerdicts]) -> list[str]:
    """Warn of repeated verdicts: two recipes on one model, judged under one name, cannot be distinguished."""
    notes = []
    for line in found:
        asked = Counter((_part(v), v.judge, v.item_id, v.sample, v.turn, v.swapped) for v in line.verdicts)
        n_repeated = sum(n > 1 for n in asked.values())
        if n_repeated:
            notes.append(
                f"{n_repeated} answers of {line.model!r} have several verdicts on the same prompt, sample, turn and "
                "order, and all count: if these are different systems, give their answers different names"
            )
    return notes


def _unmatched(found: Sequence[ModelVerdicts], texts: Completions) -> list[str]:
    judged = {name for line in found for name in (line.model, line.baseline) if name is not None}
    used = {texts.known(name) for name in judged}
    unused = [name for name in texts.models if name not in used]
    known = any(
        judged_answer.texts.answer or judged_answer.texts.shown for line in found for judged_answer in line.judged
    )
    notes = [] if known else ["these files do not hold the judged answers: give them as completions to see them"]
    return notes + [f"completions of {name!r} fit no judged model ({', '.join(sorted(judged))})" for name in unused]


def _pool_of(index: str | Path) -> Pool:
    from ragalign.indexes import Index

    return Index.open(index).pool


def _look_up(
    used: set[str], pools: Sequence[Pool], index: str | Path | None
) -> tuple[dict[str, Demonstration] | None, list[str]]:
    if not pools:
        return None, []
    where = {name: pool for pool in pools for name in pool.ids}
    missing = len(used - set(where))
    place = "pool" if index is None else f"index {index}"
    notes = [f"{missing} of {len(used)} retrieved demonstrations are not in the {place}"] if missing else []
    if not used and index is not None:
        notes.append("no retrieved demonstrations are recorded: give what `ragalign generate` wrote as completions")
    return {name: where[name].get(name) for name in used & set(where)}, notes
