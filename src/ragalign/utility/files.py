"""The files of measured gains.

NAME.jsonl                  one line per pair: ``{"id", "candidate", "gain", "n_tokens"}``
NAME.jsonl.run.json         the settings
NAME.questions.jsonl        the questions by id
NAME.demonstrations.jsonl   the candidates by id

An output that does not end with ``.jsonl`` is a folder with these files, of the name ``gains``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ragalign.errors import DataError
from ragalign.runs import LineFile, write_lines
from ragalign.types import Demonstration

KEYS = ("id", "candidate", "gain", "n_tokens")
_TEXT_KEYS = ("id", "instruction")
_PRIOR = 4


@dataclass(frozen=True, slots=True)
class Gain:
    """The gain of one candidate for one question.

    Attributes:
        question: the question's id.
        candidate: the demonstration's id.
        gain: log-likelihood of the reference after the demonstration minus without it, in nats, summed over the
            reference; None if it could not be measured.
        n_tokens: tokens of the reference.
    """

    question: str
    candidate: str
    gain: float | None
    n_tokens: int

    @property
    def per_token(self) -> float:
        """The gain in nats per token of the reference; 0 if there is none."""
        return self.gain / self.n_tokens if self.gain is not None and self.n_tokens else 0.0

    @classmethod
    def from_row(cls, row: Mapping[str, Any], where: str) -> Gain:
        """Read a row.

        Raises:
            DataError: a value has another type.
        """
        gain, n_tokens = row["gain"], row["n_tokens"]
        fits = isinstance(row["id"], str) and isinstance(row["candidate"], str) and isinstance(n_tokens, int)
        if not fits or isinstance(gain, bool) or not (gain is None or isinstance(gain, int | float)):
            raise DataError(f"{where} is not a measured gain; run `ragalign utility score` again into another output")
        return cls(row["id"], row["candidate"], None if gain is None else float(gain), n_tokens)


@dataclass(frozen=True, slots=True)
class Gains:
    """Measured gains with the texts they are about.

    Attributes:
        gains: those that were measured, in file order.
        questions: texts by id.
        demonstrations: by id.
        settings: how they were measured.
    """

    gains: tuple[Gain, ...]
    questions: Mapping[str, str]
    demonstrations: Mapping[str, Demonstration]
    settings: Mapping[str, Any]

    def by_question(self) -> dict[str, list[Gain]]:
        """The gains of each question."""
        found: dict[str, list[Gain]] = {}
        for gain in self.gains:
            found.setdefault(gain.question, []).append(gain)
        return found

    def mean_by_candidate(self) -> dict[str, float]:
        """The mean gain of each candidate over its questions, in nats per token."""
        values: dict[str, list[float]] = {}
        for gain in self.gains:
            values.setdefault(gain.candidate, []).append(gain.per_token)
        return {name: sum(found) / len(found) for name, found in values.items()}

    def ranking(self) -> list[str]:
        """The candidates by mean gain, best first.

        A mean over few questions is easily extreme, so each is weighed against `_PRIOR` questions of the usual gain.
        """
        means = self.mean_by_candidate()
        counts = Counter(gain.candidate for gain in self.gains)
        usual = fmean(gain.per_token for gain in self.gains)
        weighed = {name: (means[name] * counts[name] + usual * _PRIOR) / (counts[name] + _PRIOR) for name in means}
        return sorted(weighed, key=lambda name: -weighed[name])


class GainFiles:
    """Where measured gains are.

    Args:
        out: a ``.jsonl`` file, or a folder.
    """

    def __init__(self, out: str | Path) -> None:
        path = Path(out)
        self.path = path if path.suffix == ".jsonl" and not path.is_dir() else path / "gains.jsonl"

    @property
    def record(self) -> Path:
        """The settings."""
        return self.path.with_name(f"{self.path.name}.run.json")

    def lines(self) -> LineFile:
        """The gains."""
        return LineFile(self.path, KEYS)

    def write_texts(self, questions: Mapping[str, str], demonstrations: Iterable[Demonstration]) -> None:
        """Write the texts, replacing earlier ones.

        Raises:
            DataError: they cannot be written.
        """
        try:
            write_lines(
                self._beside("questions"), ({"id": id_, "instruction": text} for id_, text in questions.items())
            )
            write_lines(
                self._beside("demonstrations"),
                ({"id": one.id, "instruction": one.instruction, "response": one.response} for one in demonstrations),
            )
        except OSError as error:
            raise DataError(f"cannot write beside {self.path}: {error.strerror}") from None

    def read(self) -> Gains:
        """Read everything.

        Raises:
            DataError: a file is missing or damaged, or nothing was measured.
        """
        import json

        if not self.path.is_file():
            raise DataError(f"no measured gains in {self.path}; `ragalign utility score` writes them")
        rows = self.lines().read()
        gains = [Gain.from_row(row, f"{self.path}, line {number}") for number, row in enumerate(rows, 1)]
        measured = tuple(gain for gain in gains if gain.gain is not None)
        if not measured:
            raise DataError(f"{self.path} has no measured gain yet; finish `ragalign utility score` first")
        questions = {row["id"]: row["instruction"] for row in self._texts("questions")}
        demonstrations = {
            row["id"]: Demonstration(row["instruction"], row["response"]) for row in self._texts("demonstrations")
        }
        for gain in measured:
            for id_, known in ((gain.question, questions), (gain.candidate, demonstrations)):
                if id_ not in known:
                    raise DataError(
                        f"{self.path} names {id_!r}, whose text is missing beside it; keep its files together"
                    )
        try:
            settings = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            settings = {}
        return Gains(measured, questions, demonstrations, settings if isinstance(settings, dict) else {})

    def _texts(self, kind: str) -> list[dict[str, Any]]:
        path = self._beside(kind)
        if not path.is_file():
            raise DataError(f"{path} is missing: `ragalign utility score` writes it beside the gains; copy it, too")
        return LineFile(path, _TEXT_KEYS).read()

    def _beside(self, kind: str) -> Path:
        return self.path.with_name(f"{self.path.stem}.{kind}.jsonl")
