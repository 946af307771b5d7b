"""Judgement files: ragalign's verdicts and those of upstream tools, with the protocol detected from the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ragalign.comparisons.computed import COMPUTED
from ragalign.comparisons.texts import Place, Texts, recorded_texts
from ragalign.errors import ConfigError, DataError
from ragalign.judging.answers import read_categories
from ragalign.judging.base import Verdict
from ragalign.judging.files import read_rows
from ragalign.judging.output import VERDICTS, read_verdicts
from ragalign.judging.protocols.grouping import group
from ragalign.judging.registry import PROTOCOLS, make_protocol, protocol_of_file
from ragalign.judging.replay import ReplayProblem, replay
from ragalign.judging.requests import Json

_OURS = {"item_id", "protocol", "judge", "model"}


@dataclass(frozen=True, slots=True)
class VerdictSource:
    """The verdicts of one protocol in one file.

    Attributes:
        file: the file's path.
        protocol: the protocol's name.
        verdicts: in file order.
        texts: queries and answers recorded in the file.
        problems: rows that could not be read; each counts as an unscored verdict.
    """

    file: str
    protocol: str
    verdicts: tuple[Verdict, ...]
    texts: Mapping[Place, Texts] = field(default_factory=dict)
    problems: tuple[ReplayProblem, ...] = ()


def read_sources(
    paths: Sequence[str | Path], *, protocol: str | None = None, questions: str | Path | None = None
) -> list[VerdictSource]:
    """Read judgement files.

    Args:
        paths: output of `ragalign judge run` (``verdicts.jsonl``, or its folder), or judgement files of upstream
            tools.
        protocol: the protocol of upstream files, if it cannot be detected.
        questions: FastChat's question file, for its categories.

    Raises:
        ConfigError: the protocol is unknown, or differs from that of ragalign's verdicts.
        DataError: a file cannot be read, has no judgement, is given twice, or its protocol cannot be detected.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    categories = read_categories(questions) if questions is not None else {}
    files = [Path(path) / VERDICTS if Path(path).is_dir() else Path(path) for path in paths]
    for file in files:
        if [other.resolve() for other in files].count(file.resolve()) > 1:
            raise DataError(f"{file} is given twice")
    return [source for file in files for source in _read(file, protocol, categories)]


def _read(file: Path, protocol: str | None, categories: Mapping[str, str]) -> list[VerdictSource]:
    first = next((row.value for row in read_rows(file) if row.value is not None), None)
    if first is None:
        raise DataError(f"{file} contains no JSON object; give verdicts.jsonl or a judgement file of an upstream tool")
    if set(first) >= _OURS:
        return _own(file, protocol)
    name = protocol_of_file(protocol, file) if protocol is not None else _tell(first, file)
    options = {"categories": categories} if name == "mt-bench" and categories else {}
    replayed = replay(make_protocol(name, **options), [file])
    return [VerdictSource(str(file), name, replayed.verdicts, recorded_texts(name, file), replayed.problems)]


def _own(file: Path, protocol: str | None) -> list[VerdictSource]:
    verdicts = read_verdicts(file)
    for number, verdict in enumerate(verdicts, start=1):
        if problem := _problem(verdict):
            raise DataError(f"{file} verdict {number}: not a valid verdict: {problem}")
    sources = [
        VerdictSource(str(file), members[0].protocol, tuple(members))
        for members in group(verdicts, lambda v: v.protocol)
    ]
    for source in sources:
        if protocol is not None and source.protocol not in (protocol, f"{protocol}-pairwise"):
            raise ConfigError(f"{file} has verdicts of the protocol {source.protocol}, not {protocol}")
    return sources


def _problem(verdict: Any) -> str | None:
    """The reason why a verdict read from JSON is invalid; None if it is valid."""
    texts = (verdict.id, verdict.item_id, verdict.protocol, verdict.judge, verdict.model, verdict.raw)
    if not all(isinstance(text, str) for text in texts):
        return "ids, names and the judge's reply must be strings"
    if verdict.protocol not in (*PROTOCOLS, COMPUTED):
        return f"unknown protocol {verdict.protocol!r}"
    if not isinstance(verdict.scores, Mapping) or not all(map(_is_number, verdict.scores.values())):
        return "scores must map names to numbers"
    if verdict.preference is not None and not (_is_number(verdict.preference) and 0 <= verdict.preference <= 1):
        return "the preference must be a number from 0 to 1"
    if not isinstance(verdict.metadata, Mapping) or not isinstance(verdict.turn, int):
        return "metadata must be an object and turn an integer"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _tell(row: Json, file: Path) -> str:
    """The protocol whose tool writes rows of this form."""
    if {"output_1", "output_2", "preference"} <= set(row):
        return _alpaca_eval(row)
    for key, name in _SIGNS:
        if key in row:
            return name
    raise DataError(f"cannot detect the protocol of {file}: name it with --protocol ({', '.join(PROTOCOLS)})")


def _alpaca_eval(row: Json) -> str:
    """Version 2 decides by log probabilities, version 1 by a rank."""
    if row.get("annotator") == "alpaca_eval_gpt4":
        return "alpaca-eval-1"
    raw, preference = row.get("raw_completion"), row.get("preference")
    by_probability = isinstance(raw, dict) and raw.get("logprobs") is not None
    is_rank = preference in (1, 1.5, 2)
    is_weighted = "weighted" in str(row.get("annotator"))
    return "alpaca-eval-2" if by_probability or is_weighted or not is_rank else "alpaca-eval-1"


_SIGNS = (
    ("autoeval_text_list", "ica"),
    ("model_1", "mt-bench-pairwise"),
    ("judgment", "mt-bench"),
    ("assignment", "urial-pairwise"),
    ("output_cand", "just-eval"),
    ("games", "arena-hard"),
)
