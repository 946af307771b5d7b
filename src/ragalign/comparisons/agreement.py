"""Agreement in recorded judgements: between judges, and with human labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ragalign.comparisons.recorded import aggregate_files
from ragalign.errors import DataError
from ragalign.judging.agreement import Agreement, agree, level_of, ratings, unit_of
from ragalign.judging.base import Verdict
from ragalign.judging.labels import join, read_labels
from ragalign.judging.replay import ReplayProblem


@dataclass(frozen=True, slots=True)
class AgreementResult:
    """Agreement on every rating.

    Attributes:
        agreements: one for each rating with at least two raters.
        n_unscored: verdicts without a score; they do not count as ratings.
        n_unmatched: human labels without a matching verdict.
        problems: rows that could not be read.
    """

    agreements: tuple[Agreement, ...]
    n_unscored: int
    n_unmatched: int
    problems: tuple[ReplayProblem, ...]


def agreement_of_files(
    protocol: str, files: Sequence[str | Path], *, human: str | Path | None = None, strict: bool = False
) -> AgreementResult:
    """Measure the agreement between the judges of recorded files, and with human labels.

    Raises:
        ConfigError: the protocol is unknown.
        DataError: a file cannot be read, or no rating has two raters.
    """
    recorded = aggregate_files(protocol, files, strict=strict)
    verdicts = [verdict for verdict in recorded.verdicts if verdict.is_scored]
    said = ratings(verdicts, _raters(verdicts))
    n_unmatched = 0
    if human is not None:
        labels, n_unmatched = join(read_labels(human), verdicts)
        for rating, by_rater in labels.items():
            said.setdefault(rating, {}).update(by_rater)
    pairwise = any(verdict.baseline is not None for verdict in verdicts)
    rated = {rating: by_rater for rating, by_rater in said.items() if len(by_rater) > 1}
    if not rated:
        only = ", ".join(sorted({name or "unnamed" for by_rater in said.values() for name in by_rater})) or "none"
        raise DataError(f"agreement needs at least two raters of the same answers; found only: {only}")
    agreements = tuple(agree(rating, by_rater, level_of(rating, pairwise)) for rating, by_rater in rated.items())
    n_unscored = len(recorded.verdicts) - len(verdicts)
    return AgreementResult(agreements, n_unscored, n_unmatched, recorded.problems)


def _raters(verdicts: Sequence[Verdict]) -> list[str]:
    """The judges' names, or the files' where a judge (or unnamed judges) rated the same answer in several files."""
    files = [str(verdict.metadata.get("source", "")) for verdict in verdicts]
    rated_in: dict[object, set[str]] = {}
    for verdict, file in zip(verdicts, files, strict=True):
        rated_in.setdefault((verdict.judge, unit_of(verdict)), set()).add(file)
    if any(len(members) > 1 for members in rated_in.values()):
        return files
    return [verdict.judge or "judge" for verdict in verdicts]
