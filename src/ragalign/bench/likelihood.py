"""The reference likelihood of a benchmark's conditions: how likely the references are after their prompts.

conditions/NAME/likelihood.jsonl   one line per case and turn, appended batch by batch

The prompts are those that are answered. Turns after the first follow the references of the turns before, so nothing
has to be answered first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ragalign._progress import progress
from ragalign.aligner import Aligner
from ragalign.bench.cases import Case, Cases
from ragalign.errors import BudgetError, DataError
from ragalign.generation.distributions import SupportsDistributions
from ragalign.measures.likelihood import Likelihood, continuation, likelihoods, supporting
from ragalign.runs import LineFile, fingerprint
from ragalign.types import Prompt

# Cases per batch; an interruption loses at most one batch.
_BATCH = 32
_KEYS = ("turn", "id", "references")

Row = Mapping[str, Any]
Key = tuple[int, str]
"""Turn (from 1) and the case's id."""


def read_likelihoods(path: Path, cases: Cases) -> dict[Key, Row]:
    """The known likelihoods of a condition: for each turn its ``nll``, ``nll_first32``, ``bits_per_token`` and more.

    Turns whose references have changed are omitted.

    Raises:
        DataError: the file is damaged.
    """
    wanted = {key: _digest(case, key[0]) for key, case in _asked(cases)}
    found: dict[Key, Row] = {}
    for row in LineFile(path, _KEYS).read():
        key = (row["turn"], row["id"])
        if row["references"] == wanted.get(key):
            if "reason" not in row and not isinstance(row.get("nll"), float):
                raise DataError(f"{path} is damaged: delete it and run the same command again")
            found[key] = row
    return found


def missing_likelihoods(path: Path, cases: Cases) -> list[Key]:
    """The turns with references whose likelihood is not known yet."""
    known = read_likelihoods(path, cases)
    return [key for key, _ in _asked(cases) if key not in known]


def keep_likelihoods(path: Path, aligner: Aligner, cases: Cases) -> None:
    """Measure what is missing, and append it to a condition's file.

    Raises:
        ConfigError, GenerationError: as `measure_likelihoods`.
    """
    missing = set(missing_likelihoods(path, cases))
    if missing:
        lines = LineFile(path, _KEYS)
        for row in measure_likelihoods(aligner, cases, only=missing):
            lines.append(row)


def measure_likelihoods(aligner: Aligner, cases: Cases, *, only: set[Key] | None = None) -> Iterator[Row]:
    """Yield rows for the file, for all turns with references or some of them.

    Args:
        aligner: with a generator that says how likely given tokens are.
        cases: what is asked.
        only: the turns to measure. All are packed, so that a planner makes the same prompts whatever is missing.

    Raises:
        ConfigError: the generator does not say how likely given tokens are.
        GenerationError: the engine failed.
    """
    generator = supporting(aligner.generator)
    asked = _asked(cases)
    with progress("reference likelihood", len(asked) if only is None else len(only), "references") as advance:
        for turn in sorted({turn for (turn, _), _ in asked}):
            members = [case for (number, _), case in asked if number == turn]
            queries = [case.query_of(turn, [texts[0] for texts in case.references[: turn - 1]]) for case in members]
            prompts = aligner.plan(queries).prompts
            chosen = [
                (case, prompt)
                for case, prompt in zip(members, prompts, strict=True)
                if only is None or (turn, case.id) in only
            ]
            for start in range(0, len(chosen), _BATCH):
                batch = chosen[start : start + _BATCH]
                yield from _measure(aligner, generator, batch, turn)
                advance(len(batch))


def _measure(
    aligner: Aligner, generator: SupportsDistributions, batch: Sequence[tuple[Case, Prompt | BudgetError]], turn: int
) -> Iterator[Row]:
    packer = aligner.packer
    owners: list[int] = []
    prompts: list[Prompt] = []
    answers: list[list[int]] = []
    reasons: dict[int, str] = {}
    for place, (case, prompt) in enumerate(batch):
        if isinstance(prompt, BudgetError):
            reasons[place] = str(prompt)
            continue
        for reference in case.references[turn - 1]:
            try:
                answers.append(continuation(prompt, reference, packer.template, packer.tokenizer))
            except DataError as error:
                reasons[place] = str(error)
                continue
            owners.append(place)
            prompts.append(prompt)
    values: dict[int, list[Likelihood]] = {}
    for number, found in likelihoods(generator, prompts, answers):
        if isinstance(found, BudgetError):
            reasons[owners[number]] = str(found)
        else:
            values.setdefault(owners[number], []).append(found)
    for place, (case, _) in enumerate(batch):
        row: dict[str, Any] = {"turn": turn, "id": case.id, "references": _digest(case, turn)}
        # If one of several references is missing, the mean would cover other references than elsewhere.
        yield row | ({"reason": reasons[place]} if place in reasons else _mean(values[place]))


def _mean(values: Sequence[Likelihood]) -> dict[str, Any]:
    """The mean over the references of a turn."""
    rest = [value.nll_rest for value in values if value.nll_rest is not None]
    return {
        "n_references": len(values),
        "n_tokens": sum(value.n_tokens for value in values),
        "nll": fmean(value.nll for value in values),
        "nll_first32": fmean(value.nll_first32 for value in values),
        "nll_rest": fmean(rest) if rest else None,
        "bits_per_token": fmean(value.bits_per_token for value in values),
    }


def _asked(cases: Cases) -> list[tuple[Key, Case]]:
    """The turns that have references, and so have all turns before them."""
    found = []
    for case in cases.cases:
        for turn in range(1, len(case.turns) + 1):
            if len(case.references) < turn or not case.references[turn - 1]:
                break
            found.append(((turn, case.id), case))
    return found


def _digest(case: Case, turn: int) -> str:
    return fingerprint(case.references[:turn])
