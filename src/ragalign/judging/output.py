"""The output of a judging run: verdicts, and judgement files of the upstream tool."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ragalign.errors import DataError
from ragalign.judging.base import Judgement, Protocol, Verdict
from ragalign.judging.files import read_rows, write_rows
from ragalign.judging.pricing import PriceTable
from ragalign.judging.requests import JudgeUsage

VERDICTS = "verdicts.jsonl"
# Paths of each upstream tool's judgement files.
_PLACES: Mapping[str, str] = {
    "ica": "{judge}/{model}_vs_{baseline}_autoeval",
    "alpaca-eval-1": "{model}/{judge}/annotations",
    "alpaca-eval-2": "{model}/{judge}/annotations",
    "mt-bench": "model_judgment/{judge}_single",
    "mt-bench-pairwise": "model_judgment/{judge}_pair",
    "arena-hard": "model_judgment/{judge}/{model}",
}
_PLACE_OF_OTHERS = "{judge}/{model}"


def write_run(folder: Path, protocol: Protocol, judgements: Sequence[Judgement], prices: PriceTable) -> list[Path]:
    """Write `VERDICTS` and, in the upstream tool's format and at its paths, one file per judge (and model).

    Returns:
        The files, `VERDICTS` first.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = folder / VERDICTS
    write_rows(path, (_as_row(judgement.verdict, prices) for judgement in judgements), "jsonl")
    places: dict[Path, list[Judgement]] = {}
    for judgement in judgements:
        places.setdefault(folder / _place(protocol, judgement.verdict), []).append(judgement)
    for place, group in places.items():
        write_rows(place, protocol.record(group), protocol.file_format)
    return [path, *places]


def read_verdicts(path: Path) -> list[Verdict]:
    """Read a file written by `write_run`.

    Raises:
        DataError: the file cannot be read, or a line is not a verdict.
    """
    verdicts = []
    for row in read_rows(path):
        if row.value is None:
            raise DataError(f"{row.where}: {row.problem}")
        values = {field.name: row.value[field.name] for field in fields(Verdict) if field.name in row.value}
        try:
            usage = JudgeUsage(**values.pop("usage")) if values.get("usage") else None
            verdicts.append(Verdict(**{**values, "usage": usage}))
        except (TypeError, ValueError) as error:
            raise DataError(f"{row.where}: not a valid verdict: {error}") from None
    return verdicts


def _as_row(verdict: Verdict, prices: PriceTable) -> dict[str, Any]:
    return {**asdict(verdict), "cost": prices.cost(verdict.judge, verdict.usage)}


def _place(protocol: Protocol, verdict: Verdict) -> str:
    names = {"judge": verdict.judge, "model": verdict.model, "baseline": verdict.baseline or ""}
    place = _PLACES.get(protocol.name, _PLACE_OF_OTHERS).format(
        **{key: _file_name(name) for key, name in names.items()}
    )
    return f"{place}.{protocol.file_format}"


def _file_name(name: str) -> str:
    """The name with characters replaced that file names cannot have on some systems."""
    return re.sub(r"[^\w.+=@-]+", "_", name).strip(".") or "_"
