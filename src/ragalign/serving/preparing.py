"""Retrieving and packing in batches, in threads outside the event loop."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ragalign.aligner import Aligner
from ragalign.encoders import Encoder
from ragalign.packing import More
from ragalign.serving.conversations import Kept, is_short
from ragalign.types import Hit, Prompt, Query, Turn

# Maximum requests per batch; more would delay the first ones.
_MOST_TOGETHER = 64
# Maximum candidates that the packer tries for a request, since requests can set its limits.
_MOST_CANDIDATES = 1024
# Longer conversations are prepared separately. Encoders use a few hundred tokens, far less than this.
_LONG_CHARACTERS = 20_000
# Retrievers that ignore the query.
BLIND = frozenset({"random", "fixed"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """A conversation that waits for its prompt."""

    aligner: Aligner
    turns: Sequence[Turn]
    max_new_tokens: int
    kept: Kept | None = None
    where: Mapping[str, Any] | None = None
    exclude: frozenset[str] = frozenset()

    @property
    def filters(self) -> dict[str, Any]:
        """The conditions on demonstrations, as arguments of `Aligner.retrieve`."""
        if self.where is None and not self.exclude:
            return {}
        usual = self.aligner
        return {
            "exclude": replace(usual.exclude, ids=usual.exclude.ids | self.exclude),
            "where": {**(usual.where or {}), **(self.where or {})},
        }

    @property
    def n_characters(self) -> int:
        """Of the conversation."""
        return sum(len(turn.content) for turn in self.turns)

    @property
    def query(self) -> Query:
        """The text to retrieve for: the start of the last turn, which is longer than encoders' limits."""
        *before, last = self.turns
        beginning = Turn("user", last.content[:_LONG_CHARACTERS])
        return Query("", (*before, beginning), other_texts=(last.content,))


class _Lane:
    """A thread with a queue.

    Args:
        most_together: maximum jobs per batch.
        name: name of the lane.
    """

    def __init__(self, most_together: int, name: str) -> None:
        self._most_together = most_together
        self._waiting: list[tuple[int, int, Job, asyncio.Future[Prepared]]] = []
        self._counter = itertools.count()
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"ragalign-prepare-{name}")

    async def work(self, size: int, job: Job, work: Callable[[list[Job]], list[Prepared | Exception]]) -> Prepared:
        """Run a job; a lane of single jobs takes the smallest first."""
        done: asyncio.Future[Prepared] = asyncio.get_running_loop().create_future()
        number = next(self._counter)
        heapq.heappush(self._waiting, (size if self._most_together == 1 else number, number, job, done))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._drain(work))
        return await done

    async def run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _drain(self, work: Callable[[list[Job]], list[Prepared | Exception]]) -> None:
        while self._waiting:
            batch = [heapq.heappop(self._waiting) for _ in range(min(self._most_together, len(self._waiting)))]
            # Skip jobs whose client has disconnected.
            kept = [(job, done) for _, _, job, done in batch if not done.done()]
            if not kept:
                continue
            try:
                results = await self.run(partial(work, [job for job, _ in kept]))
            except BaseException as error:
                for _, done in kept:
                    if not done.done():
                        done.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            for (_, done), result in zip(kept, results, strict=True):
                if done.done():
                    continue
                if isinstance(result, Prepared):
                    done.set_result(result)
                else:
                    done.set_exception(result)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt with the details of its preparation.

    Attributes:
        prompt: the prompt.
        kept: the candidates to keep for the conversation's next turn; None without retrieval.
        reused: whether the demonstrations are those of an earlier turn.
        retrieval_s, packing_s: seconds; the jobs of a batch share the retrieval time.
    """

    prompt: Prompt
    kept: Kept | None
    reused: bool
    retrieval_s: float
    packing_s: float


class Preparer:
    """Retrieves and packs in two lanes, so that short conversations overtake long ones.

    Short ones are prepared in batches, since encoding and searching many queries takes little more time than one: while
    one batch runs, the next one is collected. Long ones are prepared one at a time in another thread, shortest first.

    Args:
        topic_threshold: see `ragalign.serving.conversations`.
    """

    def __init__(self, topic_threshold: float) -> None:
        self._topic_threshold = topic_threshold
        # Encoders must not be called from two threads at once.
        self._encoding = threading.Lock()
        self._short = _Lane(_MOST_TOGETHER, "short")
        self._long = _Lane(1, "long")

    async def prepare(self, job: Job) -> Prepared:
        """Prepare the prompt of a conversation.

        Raises:
            RagalignError: the conversation does not fit, or cannot be rendered.
        """
        found: Prepared = await self._lane(job.n_characters).work(job.n_characters, job, self._prepare_all)
        return found

    async def run(self, function: Callable[[], T], n_characters: int) -> T:
        """Run other work on a text of `n_characters` in the lane for this length.

        Raises:
            Exception: any exception of the function.
        """
        return await self._lane(n_characters).run(function)

    def close(self) -> None:
        """Stop the threads."""
        self._short.close()
        self._long.close()

    def _lane(self, n_characters: int) -> _Lane:
        return self._long if n_characters > _LONG_CHARACTERS else self._short

    def _prepare_all(self, jobs: list[Job]) -> list[Prepared | Exception]:
        started = time.perf_counter()
        found: dict[int, tuple[list[Hit], bool] | Exception] = {}
        for numbers in _grouped(jobs):
            try:
                found |= zip(numbers, self._retrieve([jobs[number] for number in numbers]), strict=True)
            except Exception as error:
                if len(numbers) == 1:
                    found[numbers[0]] = error
                    continue
                for number in numbers:  # a bad query must not affect the others
                    try:
                        [found[number]] = self._retrieve([jobs[number]])
                    except Exception as own:
                        found[number] = own
        retrieval_s = time.perf_counter() - started
        return [self._pack(job, found[number], retrieval_s) for number, job in enumerate(jobs)]

    def _retrieve(self, jobs: list[Job]) -> list[tuple[list[Hit], bool]]:
        with self._encoding:
            return self._retrieve_alone(jobs)

    def _retrieve_alone(self, jobs: list[Job]) -> list[tuple[list[Hit], bool]]:
        """Hits, and whether they were kept, for jobs with the same retriever and conditions."""
        first = jobs[0]
        holds = self._topic_holds(jobs)
        queries = [job.query for job, held in zip(jobs, holds, strict=True) if not held]
        fresh = iter(first.aligner.retrieve(queries, **first.filters) if queries else [])
        return [
            (list(job.kept.hits), True) if held and job.kept else (next(fresh), False)
            for job, held in zip(jobs, holds, strict=True)
        ]

    def _more(self, job: Job, *, reused: bool) -> More:
        """A function that retrieves more candidates for a job if some are skipped."""
        more = job.aligner.more([job.kept.text if reused and job.kept else job.query], **job.filters)

        def retrieve(positions: Sequence[int], k: int) -> Sequence[Sequence[Hit]]:
            with self._encoding:
                return more(positions, min(k, _MOST_CANDIDATES))

        return retrieve

    def _topic_holds(self, jobs: list[Job]) -> list[bool]:
        """For each job, whether its conversation keeps its demonstrations."""
        holds = [job.kept is not None for job in jobs]
        encoder = _encoder(jobs[0].aligner)
        asked = [
            number
            for number, job in enumerate(jobs)
            if job.kept is not None and encoder is not None and not is_short(job.turns[-1].content)
        ]
        if asked and encoder is not None:
            before = [kept.text for number in asked if (kept := jobs[number].kept)]
            vectors = encoder.encode([*before, *(jobs[number].query.text for number in asked)], kind="query")
            lengths = np.linalg.norm(vectors, axis=1)
            first, second = np.split(vectors / np.maximum(lengths, 1e-12)[:, None], 2)
            for number, cosine in zip(asked, np.einsum("nd,nd->n", first, second), strict=True):
                holds[number] = bool(cosine >= self._topic_threshold)
        return holds

    def _pack(self, job: Job, found: tuple[list[Hit], bool] | Exception, retrieval_s: float) -> Prepared | Exception:
        if isinstance(found, Exception):
            return found
        hits, reused = found
        started = time.perf_counter()
        try:
            prompt = job.aligner.online.pack(
                job.turns,
                hits,
                n_plain=job.aligner.candidates,
                more=self._more(job, reused=reused),
                max_new_tokens=job.max_new_tokens,
                keeps=reused,
            )
        except Exception as error:
            return error
        packing_s = time.perf_counter() - started
        kept = job.kept if reused else Kept.of(job.turns[-1].content, hits) if job.aligner.retriever else None
        return Prepared(prompt, kept, reused, retrieval_s, packing_s)


def _grouped(jobs: list[Job]) -> list[list[int]]:
    """Group the positions of jobs that can be retrieved together."""
    groups: dict[object, list[int]] = {}
    for number, job in enumerate(jobs):
        alone = job.where is not None or job.exclude
        groups.setdefault((id(job.aligner), number if alone else None), []).append(number)
    return list(groups.values())


def _encoder(aligner: Aligner) -> Encoder | None:
    """The retriever's encoder, which decides whether the topic has changed; None if queries are ignored."""
    retriever = aligner.retriever
    if retriever is None or retriever.name in BLIND:
        return None
    space = retriever.space
    return space.encoder if space is not None else None
