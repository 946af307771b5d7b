"""Converting completions to items for judges and to texts for reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ragalign.bench.answers import Answered
from ragalign.bench.cases import Case, Cases
from ragalign.comparisons.completions import Completions
from ragalign.errors import ConfigError, DataError
from ragalign.judging.answers import load_items
from ragalign.judging.pairing import Prompted, pair
from ragalign.judging.requests import Answer, Item


def items(
    cases: Cases, answered: Sequence[Answered], *, baseline: str | None = None, baseline_file: str | Path | None = None
) -> list[Item]:
    """Make the items for a judge: every answer of every condition, with the baseline's answer, if any.

    Args:
        cases: the prompts.
        answered: the answers.
        baseline: the condition to compare the others with.
        baseline_file: a file with other answers to compare with, in any upstream format, matched by prompt id or text.

    Raises:
        ConfigError: no condition has the baseline's name.
        DataError: the baseline's file cannot be read, or lacks a prompt.
    """
    opponents: Mapping[str, Answer] = {}
    if baseline_file is not None:
        opponents = _opponents(cases, baseline_file)
    elif baseline is not None:
        chosen = [answers for answers in answered if answers.condition.name == baseline]
        if not chosen:
            raise ConfigError(f"no recipe is called {baseline!r}, so it cannot be the baseline")
        opponents = {item.id: item.answer for case in cases.cases for item, _ in _items(case, chosen[0])[:1]}
    found = []
    for answers in answered:
        if baseline_file is None and answers.condition.name == baseline:
            continue
        for position, case in enumerate(cases.cases):
            for item, _ in _items(case, answers, opponents.get(case.id)):
                if (baseline is None and baseline_file is None) or item.baseline is not None:
                    # Where AlpacaEval's own instructions have their place, and with it their difficulty.
                    found.append(replace(item, metadata={"position": position, **item.metadata}))
    return found


def texts(cases: Cases, answered: Sequence[Answered]) -> Completions:
    """The texts of verdicts, and which demonstrations were used."""
    completions = Completions()
    for answers in answered:
        for case in cases.cases:
            for item, row in _items(case, answers):
                completions.add(item, row)
    return completions


def _items(case: Case, answered: Answered, baseline: Answer | None = None) -> list[tuple[Item, Mapping[str, Any]]]:
    """One item per sample, with the row of its first turn; none for a case with missing answers."""
    rows = [turn[case.id] for turn in answered.rows[: len(case.turns)] if case.id in turn]
    if len(rows) < len(case.turns):
        return []
    samples = [list(row.get("responses", [row["response"]])) for row in rows]
    # Later turns follow the first sample, so only that one has them.
    n_samples = len(samples[0]) if len(rows) == 1 else 1
    references = tuple(alternatives[0] for alternatives in case.references if alternatives)
    found = []
    for sample in range(n_samples):
        item = Item(
            id=case.id,
            turns=case.turns,
            answer=Answer(answered.condition.name, tuple(str(texts[sample]) for texts in samples)),
            baseline=baseline,
            reference=references or None,
            category=case.category,
            sample=sample,
            metadata=dict(_strings(case)),
        )
        found.append((item, rows[0]))
    return found


def _strings(case: Case) -> Iterator[tuple[str, str]]:
    for key in ("dataset", "source_id", "datasplit"):
        value = case.query.metadata.get(key)
        if isinstance(value, str):
            yield key, value


def _opponents(cases: Cases, path: str | Path) -> dict[str, Answer]:
    known = [item for item in load_items(path) if item.sample == 0]
    by_id = {item.id: item for item in known}
    same = [by_id.get(case.id) for case in cases.cases]
    # In a file without ids, they are line numbers, so ignore them.
    has_ids = all(
        item is None or item.instruction == case.turns[0] for item, case in zip(same, cases.cases, strict=True)
    )
    try:
        places = pair(
            [
                Prompted(case.id if has_ids else None, case.turns[0], next(iter(case.query.other_texts), None))
                for case in cases.cases
            ],
            [Prompted(item.id if has_ids else None, item.instruction) for item in known],
        )
    except DataError as error:
        raise DataError(f"{cases.name} and {path}: {error}") from None
    return {case.id: known[place].answer for case, place in zip(cases.cases, places, strict=True) if place is not None}
