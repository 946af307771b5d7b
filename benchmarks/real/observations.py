"""Measurements per question: likelihoods, and measures of answers that need no judge."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ragalign.encoders import Encoder
from ragalign.measures.instructions import InstructionChecker, InstructionPrompt
from ragalign.measures.likelihood import Likelihood
from ragalign.measures.shape import length_ratio, repetition
from ragalign.measures.similarity import AnswerSimilarity
from ragalign.runs import LineFile
from ragalign.templates import Template
from real import jobs

Key = tuple[str, int]
"""A question's id, and which of its observations: instructions of a question are several."""
Values = Mapping[Key, float]

FIXED = "fixed"
"""The mean over the sets that were drawn with seeds, question by question."""
_LIKELIHOOD = ("nll", "nll_first32", "nll_rest")
_SHARES = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")


@dataclass
class Part:
    """The observations of one part: metric, then condition, then question.

    Attributes:
        values: percent for shares, nats per token for likelihoods, a cosine for similarity.
        n_unscored: verdicts that a checker could not give, by condition.
    """

    values: dict[str, dict[str, dict[Key, float]]] = field(default_factory=dict)
    n_unscored: dict[str, int] = field(default_factory=dict)

    def add(self, metric: str, condition: str, key: Key, value: float | None) -> None:
        """Note one observation; None is left out."""
        if value is not None and math.isfinite(value):
            self.values.setdefault(metric, {}).setdefault(condition, {})[key] = float(value)

    @property
    def conditions(self) -> list[str]:
        """In the order in which they were first seen."""
        return list(dict.fromkeys(name for by_condition in self.values.values() for name in by_condition))

    def with_fixed(self) -> Part:
        """The same, with the drawn sets together under `FIXED` in place of each."""
        merged: dict[str, dict[str, dict[Key, float]]] = {}
        for metric, by_condition in self.values.items():
            sets = [values for name, values in by_condition.items() if is_set(name)]
            rest = {name: values for name, values in by_condition.items() if not is_set(name)}
            shared = set.intersection(*(set(values) for values in sets)) if sets else set()
            means = {key: fmean(values[key] for values in sets) for key in sorted(shared)}
            merged[metric] = rest | ({FIXED: means} if means else {})
        return Part(merged, self.n_unscored)


@dataclass(frozen=True)
class Measured:
    """Everything that was measured, and the questions."""

    questions: Mapping[str, Mapping[str, Any]]
    alpaca: Part
    ifeval: Part
    many_shot: Part
    decoding: Part


def is_set(condition: str) -> bool:
    """Whether a condition is one of the drawn sets."""
    return condition.startswith(f"{FIXED} ")


def load(folder: Path, data: Path) -> Measured:
    """Read the files of `prepare` and `measure`, and score the answers.

    Args:
        folder: with ``questions.json`` and ``measured``.
        data: where IFEval's prompts are.
    """
    rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    questions = {row["id"]: row for row in rows}
    prompts = _prompts(data)
    checker = InstructionChecker("ifeval")
    alpaca, ifeval, many_shot, decoding = Part(), Part(), Part(), Part()
    _add_likelihoods(alpaca, _lines(folder, "alpaca-likelihood"))
    _add_likelihoods(many_shot, _lines(folder, "many-shot"))
    form = Template.load("urial")
    _add_alpaca(alpaca, _lines(folder, "alpaca-answers"), questions, form)
    _add_ifeval(ifeval, _lines(folder, "ifeval-answers"), prompts, checker, form)
    _add_ifeval(decoding, _lines(folder, "decoding"), prompts, checker, Template.load("ica"))
    return Measured(questions, alpaca, ifeval, many_shot, decoding)


def _lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """What was measured, in the order of the jobs: an engine finishes short answers first."""
    _, groups, _ = jobs.load(folder)
    keys = (job.key for group in groups if group.file == name for job in group.jobs)
    places = {key: place for place, key in enumerate(keys)}
    rows = LineFile(folder / "measured" / f"{name}.jsonl", ("condition", "question")).read()
    return sorted(rows, key=lambda row: places[row["condition"], row["question"]])


def _prompts(data: Path) -> dict[str, InstructionPrompt]:
    path = data / "ifeval" / "ifeval_prompts.jsonl"
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    prompts = (InstructionPrompt.from_row(row) for row in rows)
    return {f"ifeval-{prompt.id}": prompt for prompt in prompts}


def _add_likelihoods(part: Part, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        found = Likelihood.of(np.array(row["logprobs"], dtype=np.float32))
        for metric in _LIKELIHOOD:
            part.add(metric, row["condition"], (row["question"], 0), getattr(found, metric))


def _add_alpaca(
    part: Part, rows: Sequence[Mapping[str, Any]], questions: Mapping[str, Mapping[str, Any]], form: Template
) -> None:
    similarity = AnswerSimilarity(Encoder.load())
    for row, text in _cleaned(rows, form):
        references = questions[row["question"]]["references"]
        key = (row["question"], 0)
        # An empty answer is like nothing.
        part.add("similarity", row["condition"], key, similarity(text, references) if text else 0.0)
        part.add("length_ratio", row["condition"], key, length_ratio(text, references))
        _add_shape(part, row, text)


def _add_ifeval(
    part: Part,
    rows: Sequence[Mapping[str, Any]],
    prompts: Mapping[str, InstructionPrompt],
    checker: InstructionChecker,
    form: Template,
) -> None:
    for row, text in _cleaned(rows, form):
        condition, question = row["condition"], row["question"]
        followed = checker.check(prompts[question], text)
        for mode in ("strict", "loose"):
            verdicts = [getattr(verdict, mode) for verdict in followed]
            for number, verdict in enumerate(verdicts):
                part.add(
                    f"instruction_{mode}", condition, (question, number), None if verdict is None else 100 * verdict
                )
            if None not in verdicts:
                part.add(f"prompt_{mode}", condition, (question, 0), 100.0 * all(verdicts))
        unknown = sum(not verdict.is_scored for verdict in followed)
        part.n_unscored[condition] = part.n_unscored.get(condition, 0) + unknown
        _add_shape(part, row, text)


def _add_shape(part: Part, row: Mapping[str, Any], text: str) -> None:
    key = (row["question"], 0)
    part.add("stopped", row["condition"], key, 100.0 * (row["finish_reason"] == "stop"))
    repeated = repetition(text)
    part.add("repetition", row["condition"], key, None if repeated is None else 100 * repeated)


def _cleaned(rows: Sequence[Mapping[str, Any]], form: Template) -> Iterator[tuple[Mapping[str, Any], str]]:
    for row in rows:
        yield row, form.clean(row["text"], finished=row["finish_reason"] != "length")
