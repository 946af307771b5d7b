"""Streaming the answers to a prompt: several samples at once, cleaned and counted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ragalign.generation.asynchronous import AsyncEngine
from ragalign.generator import ClosableAsyncIterator
from ragalign.templates.streaming import CleanStream
from ragalign.templates.template import Template
from ragalign.types import Decoding, Delta, Prompt, TokenLogprob

# Maximum number of parts to buffer for a slow client before reading from the engine pauses.
_MOST_HELD = 64


@dataclass(frozen=True, slots=True)
class Part:
    """The next part of an answer, ready to send.

    Attributes:
        index: index of the answer.
        text: the cleaned text.
        logprobs: log-probabilities of the sampled tokens; cleaning can have changed the text.
        finish_reason: ``stop`` or ``length`` in the last part of an answer.
        n_tokens: tokens of the answer; set in its last part.
        n_cached_tokens: prompt tokens from the prefix cache; set in the last part, None if not reported.
        n_reused_tokens: tokens of reused demonstrations; set in the last part.
    """

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    n_tokens: int = 0
    n_cached_tokens: int | None = None
    n_reused_tokens: int = 0


async def answer(
    generator: AsyncEngine,
    prompt: Prompt,
    decoding: Decoding,
    template: Template | None,
    *,
    logprobs: int | None,
    whole: bool,
) -> ClosableAsyncIterator[Part]:
    """Answer one prompt `decoding.n` times at once; closing the iterator cancels all of them.

    Args:
        generator: generates the answers.
        prompt: the prompt.
        decoding: the decoding parameters.
        template: cleans the output; None returns it unchanged.
        logprobs: number of most likely tokens to report with each token; None for none.
        whole: return each answer in one part.

    Raises:
        GenerationError: an answer failed; the others are cancelled.
    """
    if decoding.n == 1:
        async with aclosing(_one(generator, prompt, decoding, template, 0, logprobs, whole=whole)) as parts:
            async for part in parts:
                yield part
        return
    queue: asyncio.Queue[Part | Exception] = asyncio.Queue(_MOST_HELD)

    async def pump(index: int) -> None:
        try:
            async with aclosing(_one(generator, prompt, decoding, template, index, logprobs, whole=whole)) as parts:
                async for part in parts:
                    await queue.put(part)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(pump(index)) for index in range(decoding.n)]
    try:
        n_left = decoding.n
        while n_left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            n_left -= item.finish_reason is not None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one(
    generator: AsyncEngine,
    prompt: Prompt,
    decoding: Decoding,
    template: Template | None,
    index: int,
    logprobs: int | None,
    *,
    whole: bool,
) -> ClosableAsyncIterator[Part]:
    clean = None if template is None else CleanStream(template)
    tokens = _Logprobs()
    last = Delta("")
    deltas = generator.stream(prompt, decoding, sample=index, logprobs=logprobs, whole=whole)
    async with aclosing(deltas):
        async for last in deltas:
            tokens.push(last.logprobs)
            # Do not send the text of the last delta separately: cleaning needs the end of the answer.
            text = last.text if clean is None else clean.push(last.text)
            found = tokens.taken(len(last.text))
            # An answer that is over has stopped; where tokens are counted as they come, leave the model there.
            if last.finish_reason is not None or (clean is not None and clean.ended and last.n_tokens):
                break
            if text or found:
                yield Part(index, text, found)
        else:
            text, found = "", ()
    rest = "" if clean is None else clean.finish(finished=last.finish_reason != "length")
    yield Part(
        index,
        text + rest,
        found,
        finish_reason="stop" if clean is not None and clean.ended else _reason(last.finish_reason),
        n_tokens=last.n_tokens,
        n_cached_tokens=last.n_cached_tokens,
        n_reused_tokens=last.n_reused_tokens,
    )


def _reason(reason: str | None) -> str:
    """Map a finish reason to OpenAI's; unknown reasons count as "stop"."""
    return "length" if reason == "length" else "stop"


class _Logprobs:
    """Releases tokens with the text in which they begin, and never those of a stop string or after it."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        self._n_begun = 0
        self._n_shown = 0

    def push(self, tokens: Sequence[TokenLogprob]) -> None:
        for token in tokens:
            self._waiting.append((self._n_begun, token))
            self._n_begun += len(token.token)

    def taken(self, n_characters: int) -> tuple[TokenLogprob, ...]:
        self._n_shown += n_characters
        found = []
        while self._waiting and self._waiting[0][0] < self._n_shown:
            found.append(self._waiting.popleft()[1])
        return tuple(found)
