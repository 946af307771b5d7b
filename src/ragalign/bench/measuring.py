"""The built-in metrics that need no judge, by the names that ``--metric`` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ragalign.errors import DataError
from ragalign.measures.instructions import BENCHMARKS, Followed, InstructionChecker, InstructionPrompt

Record = Mapping[str, Any]
"""An answer as a metric sees it; see `ragalign.bench.scoring.records`."""

EXACT_MATCH = "exact-match"
LIKELIHOOD = "reference-likelihood"
SIMILARITY = "answer-similarity"
BUILT_IN = (EXACT_MATCH, LIKELIHOOD, SIMILARITY, *BENCHMARKS)


class UnscoredError(Exception):
    """An answer has no score; the message says why."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a built-in metric.

    Attributes:
        name: in verdicts and JSON; see `ragalign.comparisons.metrics` for labels and units.
        value: of a record.
        lower_is_better: whether a lower value is a better one.
        needs_likelihoods: whether records must hold ``reference_likelihood``, which the model is asked for.
        weight: how many observations the value is the mean of, such as instructions; 1 by default.
    """

    name: str
    value: Callable[[Record], float]
    lower_is_better: bool = False
    needs_likelihoods: bool = False
    weight: Callable[[Record], int] | None = None


def measures_of(metric: str) -> tuple[Measure, ...]:
    """The figures of a built-in metric, the headline first; empty if there is no such metric.

    Raises:
        MissingDependencyError: a package that it needs is not installed.
    """
    if metric == EXACT_MATCH:
        return (Measure("exact_match", exact_match),)
    if metric == LIKELIHOOD:
        return tuple(
            Measure(name, _likelihood(name), lower_is_better=True, needs_likelihoods=True)
            for name in ("nll", "nll_first32", "bits_per_token")
        )
    if metric == SIMILARITY:
        return (Measure("answer_similarity", _similarity()),)
    if metric in BENCHMARKS:
        # The headline is what each benchmark's authors report.
        names = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
        if metric == "ifbench":
            names = ("prompt_loose", "prompt_strict", "instruction_loose", "instruction_strict")
        checked = _instructions(metric)
        return tuple(
            Measure(name, _share(name, checked), weight=_n_instructions if name.startswith("instruction") else None)
            for name in names
        )
    return ()


def exact_match(record: Record) -> float:
    """1 if the response equals a reference, ignoring whitespace at both ends, else 0.

    Raises:
        UnscoredError: there is no reference.
    """
    return float(record["response"].strip() in {reference.strip() for reference in _references(record)})


def _references(record: Record) -> Sequence[str]:
    found: Sequence[str] = record["references"]
    if not found:
        raise UnscoredError("the prompt has no reference")
    return found


def _likelihood(name: str) -> Callable[[Record], float]:
    def value(record: Record) -> float:
        _references(record)
        measured = record.get("reference_likelihood")
        if measured is None or name not in measured:
            raise UnscoredError((measured or {}).get("reason", "the likelihood of the reference was not measured"))
        return float(measured[name])

    return value


def _similarity() -> Callable[[Record], float]:
    from ragalign.encoders import Encoder
    from ragalign.measures.similarity import AnswerSimilarity

    @lru_cache(maxsize=1)
    def measure() -> AnswerSimilarity:
        return AnswerSimilarity(Encoder.load())

    return lambda record: measure()(record["response"], _references(record))


def _instructions(benchmark: str) -> Callable[[Record], tuple[Followed, ...]]:
    """Checks each answer once for all figures."""
    checker = InstructionChecker(benchmark)
    known: dict[tuple[str, str], tuple[Followed, ...]] = {}

    def checked(record: Record) -> tuple[Followed, ...]:
        text = record["messages"][0]["content"]
        key = (text, record["response"])
        if key not in known:
            try:
                prompt = InstructionPrompt.from_row({"prompt": text, **_arguments(record)})
            except DataError as error:
                raise UnscoredError(f"the prompt holds no instructions to check: {error}") from None
            known[key] = tuple(checker.check(prompt, record["response"]))
        return known[key]

    return checked


def _arguments(record: Record) -> dict[str, Any]:
    metadata = record["metadata"]
    return {key: metadata.get(key) for key in ("instruction_id_list", "kwargs")}


def _n_instructions(record: Record) -> int:
    return len(record["metadata"]["instruction_id_list"])


def _share(name: str, checked: Callable[[Record], tuple[Followed, ...]]) -> Callable[[Record], float]:
    level, mode = name.split("_")

    def value(record: Record) -> float:
        found = checked(record)
        for outcome in found:
            if not outcome.is_scored:
                raise UnscoredError(f"{outcome.instruction}: {outcome.reason}")
        followed = [bool(getattr(outcome, mode)) for outcome in found]
        return float(all(followed)) if level == "prompt" else sum(followed) / len(followed)

    return value
