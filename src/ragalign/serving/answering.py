"""Streams the answers to a prompt: several samples at once, cleaned and counted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ragalign.generation.asynchronous import AsyncEngine
from ragalign.templates.streaming import CleanStream
from ragalign.templates.template import Template
from ragalign.types import ClosableAsyncIterator, Decoding, Delta, Prompt, TokenLogprob

# Parts of answers that wait for a slow client before the engine's are no longer taken.
_MOST_HELD = 64


@dataclass(frozen=True, slots=True)
class Part:
    """The next part of one answer, ready to be shown.

    Attributes:
        index: which of the answers.
        text: cleaned.
        logprobs: of the text's tokens, as the model drew them; cleaning can have changed the text.
        finish_reason: ``stop`` or ``length`` in the last part of an answer.
        n_tokens: tokens of the answer, in its last part.
        n_cached_tokens: prompt tokens from the prefix cache, in the last part; None where the engine does not say.
        n_reused_tokens: tokens of demonstrations that were reused, in the last part.
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
    """Answer one prompt `decoding.n` times at once; closing ends the engine's work on all of them.

    Args:
        generator: makes the answers.
        prompt: what to answer.
        decoding: how.
        logprobs: most likely tokens to report with each token; None for none.
        whole: each answer in one part.
        template: cleans the output; None leaves it as it is.

    Raises:
        GenerationError: any of the answers failed; the others are given up.
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
            # The last delta's text is not shown on its own: cleaning looks at the end.
            text = last.text if clean is None else clean.push(last.text)
            found = tokens.taken(len(last.text))
            if last.finish_reason is not None:
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
        finish_reason=_reason(last.finish_reason),
        n_tokens=last.n_tokens,
        n_cached_tokens=last.n_cached_tokens,
        n_reused_tokens=last.n_reused_tokens,
    )


def _reason(reason: str | None) -> str:
    """OpenAI's words; what is neither has ended the answer all the same."""
    return "length" if reason == "length" else "stop"


class _Logprobs:
    """Gives tokens out once the text they begin in is there, and never those of a stop string or beyond."""

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
