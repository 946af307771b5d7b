"""Answering many queries while later ones are retrieved for and packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from queue import SimpleQueue

from ragalign.errors import BudgetError, RagalignError
from ragalign.generator import Generator
from ragalign.planning import Plan
from ragalign.types import Completion, Decoding, Prompt, Query

# Queries that are retrieved for and packed together, while earlier ones are answered. Small batches let the engine
# start early and hide the most work, but prompts share prefixes only within a batch, and an engine on the CPU
# loses more to concurrent packing than it gains.
FEW, MANY = 64, 4096


@dataclass(frozen=True, slots=True)
class Failure:
    """A query without a completion, and the reason."""

    query: Query
    error: RagalignError


def iter_answers(
    queries: Sequence[Query],
    plan: Callable[[Sequence[Query]], Plan],
    generator: Generator,
    decoding: Decoding,
    *,
    batch_size: int,
) -> Iterator[tuple[int, Completion | Failure]]:
    """Answer queries, yielding (position, result) as each finishes; a query that does not fit yields a `Failure`.

    Args:
        queries: the queries.
        plan: retrieves for a batch of queries and packs it.
        generator: answers the prompts.
        decoding: the decoding parameters.
        batch_size: queries per call of `plan`.

    Raises:
        GenerationError: the generator failed as a whole.
    """
    # For each query in packing order: its position if it has a prompt, else its failure.
    packed: SimpleQueue[int | tuple[int, Failure]] = SimpleQueue()

    def prompts_of(start: int) -> Iterator[Prompt]:
        planned = plan(queries[start : start + batch_size])
        for place in planned.order:
            prompt = planned.prompts[place]
            if isinstance(prompt, BudgetError):
                packed.put((start + place, Failure(queries[start + place], prompt)))
            else:
                packed.put(start + place)
                yield prompt

    # The generator reads prompts in a thread, so later batches are packed while it answers.
    prompts: Iterable[Prompt] = list(prompts_of(0))
    if len(queries) > batch_size:
        prompts = chain(prompts, chain.from_iterable(map(prompts_of, range(batch_size, len(queries), batch_size))))
    places: list[int] = []  # of the prompts that the generator has read
    for number, completion in generator.iter_generate(prompts, decoding):
        while len(places) <= number:
            found = packed.get()
            if isinstance(found, int):
                places.append(found)
            else:
                yield found
        yield places[number], completion
    while not packed.empty():
        found = packed.get()
        if not isinstance(found, int):
            yield found
