"""Scores without a judge: exact match, or a user's Python function."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragalign.bench.cases import Case, Cases
from ragalign.bench.running import Answered
from ragalign.comparisons.computed import COMPUTED
from ragalign.comparisons.metrics import EXACT_MATCH
from ragalign.errors import ConfigError
from ragalign.judging.base import Verdict

Record = Mapping[str, Any]


class UnscoredError(Exception):
    """An answer has no score; the message says why."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """A programmatic metric.

    Attributes:
        name: of the score in verdicts.
        score: the score of a record (see `records`).
    """

    name: str
    score: Callable[[Record], float]


def make_scorer(text: str) -> Scorer:
    """``exact-match``, or ``path/to/file.py:function``.

    The function gets a record (see `records`) and returns a number, or None where there is nothing to score.

    Raises:
        ConfigError: there is no such metric, file or function, or the file does not run.
    """
    if text == "exact-match":
        return Scorer(EXACT_MATCH, exact_match)
    path, colon, name = text.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise ConfigError(f"no metric {text!r}: use exact-match, or a function of yours as path/to/file.py:function")
    function = getattr(_module(Path(path)), name, None)
    if not callable(function):
        raise ConfigError(f"{path} has no function {name!r}")
    return Scorer(name, lambda record: _number(function, record))


def exact_match(record: Record) -> float:
    """1 if the response is one of the references, blanks at both ends aside, and 0 if not.

    Raises:
        UnscoredError: there is no reference.
    """
    references = record["references"]
    if not references:
        raise UnscoredError("the prompt has no reference")
    return float(record["response"].strip() in {reference.strip() for reference in references})


def records(case: Case, answered: Answered) -> list[tuple[int, int, dict[str, Any]]]:
    """What a metric sees, as (turn from 1, sample, record) for each answer to a case.

    A record has ``id``, ``instruction`` (the turn's), ``messages`` (up to the answer), ``response``, ``references``
    (a list, empty where none are known), ``finish_reason``, ``demonstrations`` (ids), ``recipe``, ``turn``,
    ``category`` and ``metadata``: all other fields of the prompt's row.
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
            "messages": [{"role": one.role, "content": one.content} for one in query.turns],
            "references": list(case.references[turn - 1]) if len(case.references) >= turn else [],
            "finish_reason": row["finish_reason"],
            "demonstrations": row["demonstrations"],
            "recipe": answered.condition.name,
            "turn": turn,
            "category": case.category,
            "metadata": dict(query.metadata),
        }
        for sample, response in enumerate(row.get("responses", [row["response"]])):
            found.append((turn, sample, {**common, "response": response}))
        earlier.append(str(row["response"]))
    return found


def score_all(scorer: Scorer, cases: Cases, answered: Sequence[Answered]) -> list[Verdict]:
    """One verdict per answer; an answer that is missing or has no score is unscored, with the reason."""
    return [verdict for one in answered for case in cases.cases for verdict in _verdicts(scorer, case, one)]


def _verdicts(scorer: Scorer, case: Case, answered: Answered) -> list[Verdict]:
    found = [_verdict(scorer, case, answered, turn, sample, one) for turn, sample, one in records(case, answered)]
    n_answered = len({verdict.turn for verdict in found})
    missing = range(n_answered + 1, len(case.turns) + 1)
    return found + [_verdict(scorer, case, answered, turn, 0, None) for turn in missing]


def _verdict(scorer: Scorer, case: Case, answered: Answered, turn: int, sample: int, record: Record | None) -> Verdict:
    scores: dict[str, float] = {}
    reason, shown = "there is no answer", ""
    if record is not None:
        shown = "\n\nor\n\n".join(record["references"])
        try:
            scores, reason = {scorer.name: scorer.score(record)}, ""
        except UnscoredError as error:
            reason = str(error)
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
    )


def _number(function: Callable[[Record], Any], record: Record) -> float:
    """What a user's function returns, as a score."""
    try:
        value = function(record)
    except Exception as error:
        raise UnscoredError(f"the metric failed: {type(error).__name__}: {error}") from None
    if value is None:
        raise UnscoredError("the metric gave no score")
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UnscoredError(f"the metric gave no finite number: {value!r}")
    return float(value)


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"ragalign_metric_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"there is no file {path} with a metric")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path} does not run: {type(error).__name__}: {error}") from None
    return module
