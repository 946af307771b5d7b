"""Asking an instruction-tuned model for better answers, over a chat-completions endpoint.

Requests are retried, limited in number and resumed; every rewrite is written down as soon as it arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ragalign._progress import progress
from ragalign.errors import GenerationError, RagalignError
from ragalign.judging.budget import Budget, BudgetSpentError, Ledger
from ragalign.judging.client import ChatClient
from ragalign.judging.judges import Judge
from ragalign.judging.limits import TokenWindow
from ragalign.judging.pricing import Quote
from ragalign.judging.retries import FatalError, RequestError, RetryPolicy
from ragalign.runs import OutputFile
from ragalign.types import Demonstration

_KEYS = ("id", "rewrite")
# After so many failures in a row the endpoint is down, and the other requests would only wait for it.
_MOST_FAILURES = 5

PROMPT = """\
Below are a question and an answer to it. Write a better answer: correct, complete, and clearly written. Keep what the \
answer says where it is right, its language, and its format. Reply with the answer only.

Question:
{question}

Answer:
{answer}"""


@dataclass(frozen=True, slots=True)
class RewriteOptions:
    """Options of `rewrite`.

    Attributes:
        max_requests: maximum requests, including failed ones and retries; None for no limit.
        max_tokens: maximum tokens of a rewrite; a longer one is rejected.
        temperature: of the model that rewrites.
        concurrency: maximum requests in flight.
        timeout_s: seconds without a reply after which a request is retried.
        retry: when to retry.
    """

    max_requests: int | None = None
    max_tokens: int = 1024
    temperature: float = 0.0
    concurrency: int = 8
    timeout_s: float = 120.0
    retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(max_attempts=5))


@dataclass(frozen=True, slots=True)
class Rewrites:
    """The rewrites of some demonstrations.

    Attributes:
        texts: by id of the demonstration; None where a reply was empty or cut off.
        n_requests: requests sent in this run.
        problems: why others have none yet, by id.
    """

    texts: Mapping[str, str | None]
    n_requests: int
    problems: Mapping[str, str]


def rewrite(
    demonstrations: Sequence[Demonstration], writer: Judge, work: Path, options: RewriteOptions | None = None
) -> Rewrites:
    """Ask for a better answer to each demonstration's instruction.

    Args:
        demonstrations: those to rewrite.
        writer: the model and its endpoint.
        work: the JSON Lines file that rewrites are added to; those in it are not asked for again.
        options: see `RewriteOptions`.

    Raises:
        ConfigError: the file was made with another model or prompt, or the key is unusable.
        DataError: the file has other content.
        GenerationError: the endpoint rejects all requests, such as for a wrong key.
    """
    options = options or RewriteOptions()
    settings = {
        "writer": writer.model, "url": writer.base_url, "prompt": PROMPT, "max_tokens": options.max_tokens,
        "temperature": options.temperature,
    }  # fmt: skip
    with OutputFile(work, settings, _KEYS) as file:
        known: dict[str, str | None] = {row["id"]: row["rewrite"] for row in file.rows}
        waiting = [one for one in demonstrations if one.id not in known]
        run = _Run(writer, options, file, known)
        if waiting:
            asyncio.run(run.work(waiting))
    return Rewrites(known, run.n_requests, run.problems)


class _Run:
    """The requests of one call."""

    def __init__(self, writer: Judge, options: RewriteOptions, file: OutputFile, known: dict[str, str | None]) -> None:
        self._writer, self._options, self._file, self._known = writer, options, file, known
        self.problems: dict[str, str] = {}
        self.n_requests = 0
        self._n_failed_in_row = 0

    async def work(self, waiting: Sequence[Demonstration]) -> None:
        client = ChatClient(
            self._writer,
            ledger=Ledger(Budget(max_requests=self._options.max_requests)),
            concurrency=self._options.concurrency,
            timeout_s=self._options.timeout_s,
            retry=self._options.retry,
            window=TokenWindow(None),
        )
        queue = list(reversed(waiting))
        try:
            with progress("rewriting", len(waiting), "demonstrations") as advance:

                async def take() -> None:
                    while queue:
                        await self._ask(client, queue.pop(), queue)
                        advance(1)

                async with asyncio.TaskGroup() as tasks:
                    for _ in range(min(self._options.concurrency, len(waiting))):
                        tasks.create_task(take())
        except* FatalError as group:
            first = group.exceptions[0]
            raise GenerationError(f"{self._writer.base_url} rejects all requests: {first}") from None
        except* RagalignError as group:
            raise group.exceptions[0] from None
        finally:
            self.n_requests = client.n_requests
            await client.aclose()

    async def _ask(self, client: ChatClient, one: Demonstration, queue: list[Demonstration]) -> None:
        text = PROMPT.format(question=one.instruction, answer=one.response)
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self._options.max_tokens,
            "temperature": self._options.temperature,
        }
        try:
            reply = await client.ask(body, n_tokens=0, quote=Quote(None, 0.0))
        except BudgetSpentError as error:
            self.problems |= {each.id: str(error) for each in (one, *queue)}
            queue.clear()
            return
        except FatalError:
            raise
        except RequestError as error:
            self.problems[one.id] = error.reason
            self._n_failed_in_row += 1
            if self._n_failed_in_row >= _MOST_FAILURES:
                self.problems |= {each.id: error.reason for each in queue}
                queue.clear()
            return
        self._n_failed_in_row = 0
        is_whole = reply.choice.get("finish_reason") != "length" and reply.refusal is None
        written = reply.text.strip() if is_whole else ""
        self._known[one.id] = written or None
        self._file.append({"id": one.id, "rewrite": written or None})
