"""Scores from a judge: verdicts of `ragalign judge run` on the cells' answers, instead of a metric's scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ragalign.errors import DataError
from ragalign.judging.base import Verdict
from ragalign.judging.output import VERDICTS, read_verdicts
from ragalign.studies.fine_tuning.running import Result


def with_verdicts(results: Sequence[Result], path: str | Path) -> list[Result]:
    """Replace the scores of results by a judge's.

    A verdict's value is its preference, from 0 to 1, or else the mean of its scores; orders, samples and turns of an
    answer are averaged. Answers without a scored verdict have no score.

    Args:
        results: the results of the judged cells; the cells' names are the judged models.
        path: ``verdicts.jsonl`` or its folder.

    Raises:
        DataError: the file cannot be read, or has no verdict on a cell.
    """
    path = Path(path)
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    models = set()
    for verdict in read_verdicts(path / VERDICTS if path.is_dir() else path):
        models.add(verdict.model)
        if verdict.is_scored:
            values[verdict.model, verdict.item_id].append(_value(verdict))
    found = []
    for result in results:
        if result.cell.name not in models:
            raise DataError(f"{path} has no verdict on {result.cell.name}: judge answers/{result.cell.name}.jsonl too")
        scores = {id_: _mean(values.get((result.cell.name, id_), ())) for id_ in result.scores}
        found.append(replace(result, scores=scores))
    return found


def _value(verdict: Verdict) -> float:
    if verdict.preference is not None:
        return verdict.preference
    return sum(verdict.scores.values()) / len(verdict.scores)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
