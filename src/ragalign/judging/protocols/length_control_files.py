"""Reads the CSV files of AlpacaEval's length control: weights, difficulties and regularising rows."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from ragalign.errors import ConfigError, DataError
from ragalign.judging.protocols.length_control import Floats, GamedRows, GlmWeights, LengthControl, check_parts

_LENGTH, _DIFFICULTY, _CONSTANT = "np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)"


Mode: TypeAlias = Literal["auto", "minimal", "off"]
"""``auto`` uses the model that the given files allow, ``minimal`` the model without difficulties."""


def load_length_control(
    mode: Mode = "auto",
    *,
    weights: str | Path | None = None,
    difficulty: str | Path | None = None,
    gamed: str | Path | None = None,
    c: float | None = None,
) -> LengthControl | None:
    """Load the length control from the given files; None if it is off.

    Raises:
        ConfigError: the files cannot be combined.
        DataError: a file has another format.
    """
    files = {"weights": weights, "difficulty": difficulty, "gamed": gamed}
    given = [name for name, path in files.items() if path is not None]
    if mode != "auto" and given:
        raise ConfigError(f"length control {mode!r} takes no files; given: {', '.join(given)}")
    if mode == "off":
        return None
    check_parts(weights is not None, difficulty is not None, gamed is not None, c)
    return LengthControl(
        weights=read_weights(weights) if weights is not None else None,
        difficulty=read_difficulty(difficulty) if difficulty is not None else None,
        gamed=read_gamed(gamed) if gamed is not None else None,
        c=c,
        by_name=mode == "minimal",
    )


def read_weights(path: str | Path) -> dict[str, GlmWeights]:
    """Read published weights by model from the upstream CSV, whose first column is the model.

    Raises:
        DataError: the file has another format.
    """
    rows = _read(path, (_LENGTH, _DIFFICULTY, _CONSTANT))
    return {
        name: GlmWeights(*(_number(row, key, path, number) for key in (_LENGTH, _DIFFICULTY, _CONSTANT)))
        for number, (name, row) in enumerate(rows, start=2)
    }


def read_difficulty(path: str | Path) -> Floats:
    """Read instruction difficulties in row order from a CSV with the column ``instruction_difficulty``.

    Raises:
        DataError: the file has another format.
    """
    rows = _read(path, (_DIFFICULTY,))
    return np.array([_number(row, _DIFFICULTY, path, number) for number, (_, row) in enumerate(rows, start=2)])


def read_gamed(path: str | Path) -> GamedRows:
    """Read regularising rows from the upstream CSV, with the length feature final (``tanh_std_delta_len``) or raw
    (``std_delta_len``), and the preference as ``preference_pseudo`` or ``preference``, from 0 to 1.

    Raises:
        DataError: the file has another format.
    """
    rows = _read(path, (_DIFFICULTY,))
    header = rows[0][1] if rows else {}
    length = "tanh_std_delta_len" if "tanh_std_delta_len" in header else "std_delta_len"
    preference = "preference_pseudo" if "preference_pseudo" in header else "preference"
    table = np.array(
        [
            [_number(row, key, path, number) for key in (length, _DIFFICULTY, preference)]
            for number, (_, row) in enumerate(rows, start=2)
        ]
    ).reshape(-1, 3)
    finished = table[:, 0] if length == "tanh_std_delta_len" else np.tanh(table[:, 0])
    return GamedRows(finished, table[:, 1], table[:, 2])


def _read(path: str | Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            header = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot read {path}: {reason}") from None
    if missing := [column for column in columns if column not in header]:
        raise DataError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(header) or 'none'}")
    return [(row[header[0]], row) for row in rows]


def _number(row: Mapping[str, str], key: str, path: str | Path, number: int) -> float:
    try:
        value = float(row[key])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path} line {number}: {key} must be a number, not {row.get(key)!r}") from None
    return value
