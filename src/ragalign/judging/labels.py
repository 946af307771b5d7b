"""Human labels: read from JSON, JSON Lines or CSV, and joined with verdicts."""

from __future__ import annotations

import csv
import io
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragalign.errors import DataError
from ragalign.judging.agreement import PREFERENCE, unit_of
from ragalign.judging.base import Verdict
from ragalign.judging.files import read_rows

_WORDS = {"win": 1.0, "draw": 0.5, "tie": 0.5, "lose": 0.0, "loss": 0.0, "model": 1.0, "baseline": 0.0}


@dataclass(frozen=True, slots=True)
class Label:
    """A person's judgement.

    Attributes:
        rater: the person; ``human`` if the file does not name one.
        item_id: the id of the prompt.
        rating: `PREFERENCE`, or the name of a score.
        value: 1 for a win, 0.5 for a tie, 0 for a loss; or the score.
        model, baseline: the models; None if the file does not name them.
        sample: the number of the answer among several, from 0.
        turn: the judged turn, from 1.
    """

    rater: str
    item_id: str
    rating: str
    value: float
    model: str | None = None
    baseline: str | None = None
    sample: int = 0
    turn: int = 1


def read_labels(path: str | Path) -> list[Label]:
    """Read human labels.

    A row has ``item_id`` (or ``question_id`` or ``id``), and either ``label`` (win, tie or lose, from the model's
    side; or a score, which ``rating`` can name) or FastChat's ``model_a``, ``model_b`` and ``winner``. It can
    have ``rater`` (or ``judge``), ``model``, ``baseline``, ``sample`` and ``turn``.

    Raises:
        DataError: the file or a row has another form.
    """
    labels = []
    for where, row in _rows(path):
        try:
            labels.append(_label(row))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    return labels


def join(
    labels: Iterable[Label], verdicts: Sequence[Verdict]
) -> tuple[dict[str, dict[str, dict[Hashable, float]]], int]:
    """Match labels with verdicts, and return them by rating, rater and unit, as `agreement.ratings` does for judges.

    A label of a comparison also matches the comparison with the models exchanged.

    Returns:
        The labels, and how many of them match no verdict.

    Raises:
        DataError: labels name no model, but the verdicts are about several.
    """
    lines = {(verdict.model, verdict.baseline) for verdict in verdicts}
    units = {unit_of(verdict) for verdict in verdicts}
    joined: dict[str, dict[str, dict[Hashable, float]]] = {}
    n_unmatched = 0
    for label in labels:
        unit, value = _place(label, lines, units)
        if unit is None:
            n_unmatched += 1
            continue
        joined.setdefault(label.rating, {}).setdefault(label.rater, {})[unit] = value
    return joined, n_unmatched


def _place(label: Label, lines: set[tuple[str, str | None]], units: set[Hashable]) -> tuple[Hashable | None, float]:
    """The unit of a label, and its value from the unit's side."""
    if label.model is None:
        if len(lines) > 1:
            raise DataError(f"labels must name the model: the verdicts are about {len(lines)} models")
        ((model, baseline),) = lines or {("", None)}
    else:
        known = [other for name, other in lines if name == label.model]
        model, baseline = label.model, label.baseline if label.baseline or not known else known[0]
    place = (label.item_id, label.sample, label.turn)
    if (model, baseline, *place) in units:
        return (model, baseline, *place), label.value
    if label.rating == PREFERENCE and (baseline, model, *place) in units:
        return (baseline, model, *place), 1 - label.value
    return None, label.value


def _rows(path: str | Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if Path(path).suffix.lower() != ".csv":
        for row in read_rows(path):
            if row.value is None:
                raise DataError(f"{row.where}: {row.problem}")
            yield row.where, row.value
        return
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"cannot read {path}: {reason}") from None
    for number, record in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=2):
        yield f"{path} line {number}", {key: value for key, value in record.items() if value not in (None, "")}


def _label(row: Mapping[str, Any]) -> Label:
    item_id = next((row[key] for key in ("item_id", "question_id", "id") if key in row), None)
    if item_id is None:
        raise DataError("a label needs 'item_id'")
    rater = row.get("rater", row.get("judge", "human"))
    rater = rater[0] if isinstance(rater, list) and rater else rater
    said: dict[str, Any] = {
        "rater": str(rater),
        "item_id": str(item_id),
        "sample": _integer(row, "sample", 0),
        "turn": _integer(row, "turn", 1),
    }
    if "winner" in row:
        model, baseline = row.get("model_a", row.get("model_1")), row.get("model_b", row.get("model_2"))
        values = {"model_a": 1.0, "model_1": 1.0, "model_b": 0.0, "model_2": 0.0}
        winner = str(row["winner"])
        value = 0.5 if winner.startswith("tie") else values.get(winner)
        if value is None or not isinstance(model, str) or not isinstance(baseline, str):
            raise DataError(
                "'winner' must be model_a, model_b or tie, and 'model_a' and 'model_b' must name the models"
            )
        return Label(rating=PREFERENCE, value=value, model=model, baseline=baseline, **said)
    if "label" not in row:
        raise DataError("a label needs 'label' or 'winner'")
    word = str(row["label"]).strip().lower()
    said |= {"model": _name(row, "model"), "baseline": _name(row, "baseline")}
    if word in _WORDS:
        return Label(rating=str(row.get("rating", PREFERENCE)), value=_WORDS[word], **said)
    try:
        score = float(word)
    except ValueError:
        raise DataError(f"the label {row['label']!r} is neither win, tie, lose nor a score") from None
    return Label(rating=str(row.get("rating", "score")), value=score, **said)


def _name(row: Mapping[str, Any], key: str) -> str | None:
    return str(row[key]) if row.get(key) is not None else None


def _integer(row: Mapping[str, Any], key: str, default: int) -> int:
    try:
        return int(row.get(key, default))
    except (TypeError, ValueError):
        raise DataError(f"{key!r} must be an integer, not {row[key]!r}") from None
