"""Prompts and jobs as files: what `prepare` writes and `measure` reads. Needs nothing but numpy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
_PIECES, _JOBS = "pieces.npz", "jobs.json"


@dataclass(frozen=True)
class Job:
    """One prompt under one condition.

    Attributes:
        condition: which demonstrations are in the prompt.
        question: the question's id.
        pieces: numbers of the pieces that the prompt is put together from.
        reference: number of the piece with the reference's tokens; None where an answer is asked for.
    """

    condition: str
    question: str
    pieces: tuple[int, ...]
    reference: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The key that identifies a job within its group."""
        return self.condition, self.question


@dataclass
class Group:
    """Jobs that are asked in the same way, in the order in which they are worked off.

    Attributes:
        name: such as ``alpaca-likelihood``.
        file: where results go, without ``.jsonl``; groups that differ only in decoding share a file.
        decoding: fields of `ragalign.Decoding`; None for reference likelihoods.
        stop: strings that end an answer.
    """

    name: str
    file: str
    decoding: dict[str, Any] | None = None
    stop: tuple[str, ...] = ()
    jobs: list[Job] = field(default_factory=list)


class PieceStore:
    """Pieces of prompts, each kept once: demonstrations are in many prompts."""

    def __init__(self, pieces: Sequence[Ids] = ()) -> None:
        self._pieces = list(pieces)
        self._numbers = {piece.tobytes(): number for number, piece in enumerate(self._pieces)}

    def add(self, ids: Sequence[int] | Ids) -> int:
        """The number of a piece, which is new or known."""
        piece = np.asarray(ids, dtype=np.int32)
        number = self._numbers.setdefault(piece.tobytes(), len(self._pieces))
        if number == len(self._pieces):
            self._pieces.append(piece)
        return number

    def join(self, numbers: Sequence[int]) -> Ids:
        """Pieces put together, int32 [n]."""
        return np.concatenate([self._pieces[number] for number in numbers])

    def size(self, numbers: Sequence[int]) -> int:
        """Tokens of these pieces together."""
        return sum(len(self._pieces[number]) for number in numbers)

    def save(self, path: Path) -> None:
        """Write all pieces to a file."""
        np.savez_compressed(
            path,
            ids=np.concatenate(self._pieces),
            lengths=np.array([len(piece) for piece in self._pieces], dtype=np.int32),
        )

    @classmethod
    def load(cls, path: Path) -> PieceStore:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            ids, lengths = arrays["ids"], arrays["lengths"]
        return cls(np.split(ids, np.cumsum(lengths)[:-1]))


def save(folder: Path, pieces: PieceStore, groups: Sequence[Group], settings: dict[str, Any]) -> None:
    """Write prompts and jobs into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces.save(folder / _PIECES)
    rows = []
    for group in groups:
        row = asdict(group)
        row["jobs"] = [[job.condition, job.question, job.pieces, job.reference] for job in group.jobs]
        rows.append(row)
    text = json.dumps({"settings": settings, "groups": rows}, ensure_ascii=False, separators=(",", ":"))
    (folder / _JOBS).write_text(text, encoding="utf-8")


def load(folder: Path) -> tuple[PieceStore, list[Group], dict[str, Any]]:
    """Read what `save` wrote."""
    table = json.loads((folder / _JOBS).read_text(encoding="utf-8"))
    groups = []
    for row in table["groups"]:
        jobs = [Job(condition, question, tuple(numbers), ref) for condition, question, numbers, ref in row.pop("jobs")]
        groups.append(Group(**{**row, "stop": tuple(row["stop"])}, jobs=jobs))
    return PieceStore.load(folder / _PIECES), groups, table["settings"]
