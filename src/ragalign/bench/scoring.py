"""Scores without a judge: built-in metrics, or a user's Python functions."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

from ragalign.bench.answers import Answered
from ragalign.bench.cases import Case, Cases
from ragalign.bench.measuring import BUILT_IN, Record, UnscoredError, measures_of
from ragalign.comparisons.computed import COMPUTED
from ragalign.errors import ConfigError
from ragalign.judging.base import Verdict


@dataclass(frozen=True, slots=True)
class Scorer:
    """A programmatic metric.

    Attributes:
        name: of the score in verdicts.
        score: the score of a record (see `records`).
        lower_is_better: whether a lower score is a better one, as for a count of errors.
        needs_likelihoods: whether records must hold ``reference_likelihood``.
        weight: how many observations a score is the mean of; 1 by default.
    """

    name: str
    score: Callable[[Record], float]
    lower_is_better: bool = False
    needs_likelihoods: bool = False
    weight: Callable[[Record], int] | None = None


def make_scorer(text: str) -> Scorer:
    """The headline of a metric (see `make_scorers`).

    Raises:
        ConfigError: as `make_scorers`.
    """
    return _scorers_of(text)[0]


def _scorers_of(text: str) -> tuple[Scorer, ...]:
    """The scores of a built-in metric, or of ``path/to/file.py:function``.

    The function gets one record (see `records`) and returns a number, or None where there is nothing to score. Where
    lower is better, it says so by an attribute: ``function.lower_is_better = True``.

    Raises:
        ConfigError: there is no such metric, file or function, the file does not run, or the function does not take
            one record.
    """
    if built_in := measures_of(text):
        return tuple(
            Scorer(metric.name, metric.value, metric.lower_is_better, metric.needs_likelihoods, metric.weight)
            for metric in built_in
        )
    path, colon, name = text.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise ConfigError(
            f"no metric {text!r}: use {', '.join(BUILT_IN)}, or a function of yours as path/to/file.py:function"
        )
    function = getattr(_module(Path(path)), name, None)
    if not callable(function):
        raise ConfigError(f"{path} has no function {name!r}")
    _check_signature(function, text)
    lower_is_better = getattr(function, "lower_is_better", False)
    if not isinstance(lower_is_better, bool):
        raise ConfigError(f"{text}: lower_is_better must be True or False, not {lower_is_better!r}")
    return (Scorer(name, lambda record: _number(function, record), lower_is_better),)


def make_scorers(texts: Sequence[str]) -> tuple[Scorer, ...]:
    """Several metrics, the headline first, each with a name of its own.

    Args:
        texts: names of built-in metrics (`ragalign.bench.measuring.BUILT_IN`), some of which give several scores, or
            functions as ``path/to/file.py:function``.

    Raises:
        ConfigError: there is no such metric, file or function, the file does not run, the function does not take one
            record, or a metric is given twice.
        MissingDependencyError: a package that a metric needs is not installed.
    """
    if repeated := [text for text in texts if texts.count(text) > 1]:
        raise ConfigError(f"the metric {repeated[0]} is given twice")
    pairs = [(text, scorer) for text in texts for scorer in _scorers_of(text)]
    names = [scorer.name for _, scorer in pairs]
    # Functions of the same name from different files are told apart by the file.
    found = [
        replace(scorer, name=f"{Path(text.rpartition(':')[0]).stem}.{scorer.name}")
        if names.count(scorer.name) > 1 and ":" in text
        else scorer
        for text, scorer in pairs
    ]
    names = [scorer.name for scorer in found]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two metrics are called {repeated[0]!r}; rename one of the functions or files")
    return tuple(found)


def records(case: Case, answered: Answered) -> list[tuple[int, int, dict[str, Any]]]:
    """An answer as a metric sees it, as (turn from 1, sample, record) for each answer to a case.

    A record has ``id``, ``instruction`` (the turn's), ``messages`` (up to the answer), ``response``, ``references``
    (a list, empty where none are known), ``finish_reason``, ``demonstrations`` (ids), ``recipe``, ``turn``,
    ``category`` and ``metadata``: all other fields of the prompt's row; and ``reference_likelihood``, where it was
    measured.
    """
    found = []
    earlier: list[str] = []
    for turn, rows in enumerate(answered.rows, start=1):
        row = rows.get(case.id)
        if row is None:
            break
        query = case.query_of(turn, earlier)
        common = {
            "id": case.id,
            "instruction": query.text,
            "messages": [{"role": turn.role, "content": turn.content} for turn in query.turns],
            "references": list(case.references[turn - 1]) if len(case.references) >= turn else [],
            "finish_reason": row["finish_reason"],
            "demonstrations": row["demonstrations"],
            "recipe": answered.condition.name,
            "turn": turn,
            "category": case.category,
            "metadata": dict(query.metadata),
        }
        if (turn, case.id) in answered.likelihoods:
            common["reference_likelihood"] = answered.likelihoods[turn, case.id]
        for sample, response in enumerate(row.get("responses", [row["response"]])):
            found.append((turn, sample, {**common, "response": response}))
        earlier.append(str(row["response"]))
    return found


def score_all(scorers: Sequence[Scorer], cases: Cases, answered: Sequence[Answered]) -> list[Verdict]:
    """One verdict per answer, with the scores of all metrics.

    An answer that is missing, or that no metric has a score for, is unscored, with the first reason. Where only some
    metrics have none, their reasons are in the verdict's ``metadata["unscored"]``.
    """
    return [verdict for answers in answered for case in cases.cases for verdict in _verdicts(scorers, case, answers)]


def _verdicts(scorers: Sequence[Scorer], case: Case, answered: Answered) -> list[Verdict]:
    found = [
        _verdict(scorers, case, answered, turn, sample, record) for turn, sample, record in records(case, answered)
    ]
    n_answered = len({verdict.turn for verdict in found})
    missing = range(n_answered + 1, len(case.turns) + 1)
    return found + [_verdict(scorers, case, answered, turn, 0, None) for turn in missing]


def _verdict(
    scorers: Sequence[Scorer], case: Case, answered: Answered, turn: int, sample: int, record: Record | None
) -> Verdict:
    scores: dict[str, float] = {}
    reasons: dict[str, str] = {}
    weights: dict[str, int] = {}
    shown = ""
    if record is not None:
        shown = "\n\nor\n\n".join(record["references"])
        for scorer in scorers:
            try:
                scores[scorer.name] = scorer.score(record)
                if scorer.weight is not None:
                    weights[scorer.name] = scorer.weight(record)
            except UnscoredError as error:
                reasons[scorer.name] = str(error)
    reason = "" if scores else next(iter(reasons.values()), "there is no answer")
    return Verdict(
        id=f"{case.id}/{sample}/turn-{turn}",
        item_id=case.id,
        protocol=COMPUTED,
        judge="",
        model=answered.condition.name,
        scores=scores,
        reason=reason or None,
        turn=turn,
        sample=sample,
        category=case.category,
        raw=shown,
        metadata=_about(scorers)
        | ({"unscored": reasons} if scores and reasons else {})
        | ({"weights": weights} if weights else {}),
    )


def _about(scorers: Sequence[Scorer]) -> dict[str, Any]:
    """Metadata about the metrics, as `ragalign.comparisons.metrics` reads it."""
    lower = [scorer.name for scorer in scorers if scorer.lower_is_better]
    names = [scorer.name for scorer in scorers] if len(scorers) > 1 else []
    return ({"metrics": names} if names else {}) | ({"lower_is_better": lower} if lower else {})


def _check_signature(function: Callable[..., Any], text: str) -> None:
    """Refuse a function that cannot be called with one record, before anything is answered."""
    advice = "a metric takes one record, as in `def score(record): ...`, and returns a number or None"
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{text} is asynchronous; {advice}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"{text} is a generator; {advice}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C, without a signature
        return
    try:
        signature.bind({})
    except TypeError:
        raise ConfigError(f"{text} has the signature {signature}; {advice}") from None


def _number(function: Callable[[Record], Any], record: Record) -> float:
    """The score that a user's function returns."""
    try:
        value = function(record)
    except (Exception, SystemExit) as error:
        raise UnscoredError(f"the metric failed: {type(error).__name__}: {error}") from None
    if value is None:
        raise UnscoredError("the metric gave no score")
    try:
        number = float(value) if isinstance(value, Real) else math.nan  # NumPy's numbers are Real, too
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UnscoredError(f"the metric gave no finite number: {repr(value)[:60]}")
    return number


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"ragalign_metric_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"there is no file {path} with a metric")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path} does not run: {type(error).__name__}: {error}") from None
    return module
