"""Measuring the speed of conditions in interleaved rounds.

Answering itself is not timed: conditions answer one after another, so a machine that slows down would penalise the
last ones. Once all answers exist, the same prompts are sent again in rounds. Every round times every condition, in a
different order and each with an empty prefix cache. Prices are ratios within a round, and the first round is discarded.
The base condition is timed twice per round; the ratio of the two times is the control.

All rounds run in one process. An interrupted measurement is discarded, so figures of two machines are never mixed.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ragalign._parsing import parse_json
from ragalign.aligner import Aligner
from ragalign.errors import BudgetError, DataError
from ragalign.generator import Generator
from ragalign.reports.costs import RelativePrice, Timing
from ragalign.runs import write_json
from ragalign.types import Query

ROUNDS = 5
"""Default number of measured rounds."""

_FILE = "timings.json"
# All rounds together make about one pass over the prompts, if that gives batches of a useful size.
_FEWEST, _MOST = 8, 64
_FIRST_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Timed:
    """One condition in one round.

    Attributes:
        engine_s: seconds in which the engine answered the batch.
        preparation_s: seconds that retrieval and packing took for it.
        first_token_s: seconds to the first token of single requests, each asked while the engine did nothing else.
    """

    engine_s: float
    preparation_s: float
    first_token_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Timings:
    """A finished measurement.

    Attributes:
        base: the condition that prices are relative to, which is also the control.
        n_prompts: prompts in a batch.
        empties_cache: whether the prefix cache could be emptied before each batch; a server's cannot.
        facts: the machine and the versions.
        rounds: the times of every condition, by name.
        control: seconds of the base's second turn in a round over those of its first; about 1 on a quiet machine.
    """

    base: str
    n_prompts: int
    empties_cache: bool
    facts: Mapping[str, str]
    rounds: tuple[Mapping[str, Timed], ...]
    control: tuple[float, ...]

    def price(self, name: str) -> RelativePrice:
        """The engine's seconds relative to the base's in the same round: median and extremes."""
        return _price([repetition[name].engine_s / repetition[self.base].engine_s for repetition in self.rounds])

    def summary(self) -> Timing:
        """The description of the measurement, for reports."""
        return Timing(self.base, len(self.rounds), self.n_prompts, self.empties_cache, _price(self.control))

    def requests_per_s(self, name: str) -> float:
        """Requests per second: the base's rate in its median round, divided by the condition's price."""
        rate = self.n_prompts / statistics.median(repetition[self.base].engine_s for repetition in self.rounds)
        return rate / self.price(name).ratio

    def preparation_s(self, name: str) -> float:
        """Retrieval and packing, per request, in the median round."""
        return statistics.median(repetition[name].preparation_s for repetition in self.rounds) / self.n_prompts

    def first_tokens_s(self, name: str) -> list[float]:
        """Seconds to the first token, of all rounds."""
        return [seconds for repetition in self.rounds for seconds in repetition[name].first_token_s]


def read_timings(folder: Path) -> Timings | None:
    """The timings of a run's folder; None if they have not been measured.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        return Timings(
            base=str(found["base"]),
            n_prompts=int(found["n_prompts"]),
            empties_cache=bool(found["empties_cache"]),
            facts=dict(found["facts"]),
            rounds=tuple({name: _timed(row) for name, row in rows.items()} for rows in found["rounds"]),
            control=tuple(map(float, found["control"])),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is damaged: delete it and run the same command again") from None


def measure(
    folder: Path,
    aligners: Mapping[str, Aligner],
    generator: Generator,
    queries: Sequence[Query],
    *,
    base: str,
    facts: Mapping[str, str],
    n_rounds: int = ROUNDS,
    on_round: Callable[[int], None] = lambda _: None,
) -> Timings:
    """Time all conditions, and keep the result in the run's folder.

    Args:
        folder: the run's.
        aligners: of the conditions, by name, all with `generator`.
        generator: the generator.
        queries: candidates, of which evenly spaced ones are used. All of them must fit every condition's prompts.
        base: the condition that prices are relative to.
        facts: the machine and the versions, to be kept beside the figures.
        n_rounds: number of measured rounds, after one warm-up round.
        on_round: called with the number of each round; the warm-up is 0.

    Raises:
        BudgetError: a query does not fit.
        GenerationError: the generator failed.
    """
    chosen = _spaced(queries, n_rounds)
    rounds: list[dict[str, Timed]] = []
    control: list[float] = []
    empties_cache = True
    for number in range(n_rounds + 1):
        on_round(number)
        turns = [*((name, False) for name in aligners), (base, True)]
        random.Random(number).shuffle(turns)
        found: dict[tuple[str, bool], Timed] = {}
        for name, is_control in turns:
            empties_cache = generator.reset_prefix_cache() and empties_cache
            found[name, is_control] = _time(aligners[name], generator, chosen)
        if number:
            rounds.append({name: found[name, False] for name in aligners})
            control.append(found[base, True].engine_s / found[base, False].engine_s)
    timings = Timings(base, len(chosen), empties_cache, dict(facts), tuple(rounds), tuple(control))
    write_json(folder / _FILE, asdict(timings))
    return timings


def _time(aligner: Aligner, generator: Generator, queries: Sequence[Query]) -> Timed:
    """Time one condition; the generator's prefix cache is empty."""
    started = time.perf_counter()
    plan = aligner.plan(queries)
    preparation = time.perf_counter() - started
    prompts = []
    for place in plan.order:
        prompt = plan.prompts[place]
        if isinstance(prompt, BudgetError):
            raise prompt
        prompts.append(prompt)
    first = replace(aligner.decoding, max_tokens=1, n=1)
    first_tokens = []
    for prompt in prompts[:_FIRST_TOKENS]:
        started = time.perf_counter()
        generator.generate([prompt], first)
        first_tokens.append(time.perf_counter() - started)
    generator.reset_prefix_cache()
    started = time.perf_counter()
    generator.generate(prompts, aligner.decoding)
    return Timed(time.perf_counter() - started, preparation, tuple(first_tokens))


def _spaced(queries: Sequence[Query], n_rounds: int) -> list[Query]:
    n = min(len(queries), _MOST, max(_FEWEST, len(queries) // n_rounds))
    return [queries[place * len(queries) // n] for place in range(n)]


def _price(ratios: Sequence[float]) -> RelativePrice:
    return RelativePrice(statistics.median(ratios), min(ratios), max(ratios))


def _timed(row: Mapping[str, Any]) -> Timed:
    return Timed(float(row["engine_s"]), float(row["preparation_s"]), tuple(map(float, row["first_token_s"])))
