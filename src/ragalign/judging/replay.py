"""Reads upstream judgement files into verdicts, counting every row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ragalign.errors import DataError
from ragalign.judging.base import Protocol, Verdict
from ragalign.judging.files import FileRow, read_rows

_UNKNOWN = "(unknown)"


@dataclass(frozen=True, slots=True)
class ReplayProblem:
    """A row that could not be read: file and line, and the reason."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Replay:
    """The verdicts of recorded files.

    Attributes:
        verdicts: all verdicts; an unreadable row counts as one unscored verdict.
        problems: the unreadable rows.
    """

    verdicts: tuple[Verdict, ...]
    problems: tuple[ReplayProblem, ...]


def replay(protocol: Protocol, paths: Iterable[str | Path]) -> Replay:
    """Read judgement files of one protocol.

    An unreadable row is assigned to the model of its file if there is only one, else to the model ``(unknown)``; its
    judge is that of the file if there is only one.

    Raises:
        DataError: a file cannot be read, or none of its rows is of this protocol.
    """
    verdicts: list[Verdict] = []
    problems: list[ReplayProblem] = []
    for path in paths:
        found, bad = _replay_file(protocol, path)
        verdicts += found
        problems += bad
    return Replay(tuple(verdicts), tuple(problems))


def _replay_file(protocol: Protocol, path: str | Path) -> tuple[list[Verdict], list[ReplayProblem]]:
    found: list[Verdict | FileRow] = []
    problems = []
    for row in read_rows(path):
        reason = row.problem
        if row.value is not None:
            try:
                found += protocol.replay(row.value, row.position, str(path))
                continue
            except DataError as error:
                reason = str(error)
        problems.append(ReplayProblem(row.where, reason or "unreadable"))
        found.append(row)
    readable = [entry for entry in found if isinstance(entry, Verdict)]
    if not readable:
        first = problems[0]
        raise DataError(f"{path} has no judgement of the protocol {protocol.name}: {first.where}: {first.reason}")
    reasons = iter(problems)
    verdicts = [
        entry if isinstance(entry, Verdict) else _unreadable(protocol, entry, next(reasons), readable, str(path))
        for entry in found
    ]
    return verdicts, problems


def _unreadable(
    protocol: Protocol, row: FileRow, problem: ReplayProblem, others: Sequence[Verdict], source: str
) -> Verdict:
    models = {(verdict.model, verdict.baseline) for verdict in others}
    judges = {verdict.judge for verdict in others}
    model, baseline = models.pop() if len(models) == 1 else (_UNKNOWN, None)
    judge = judges.pop() if len(judges) == 1 else ""
    return Verdict(
        f"row-{row.position}",
        f"row-{row.position}",
        protocol.name,
        judge,
        model,
        baseline,
        reason=f"unreadable row: {problem.reason}",
        metadata={"source": source},
    )
