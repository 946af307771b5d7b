"""The service: from a conversation to its prompt and to the parts of its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ragalign.aligner import Aligner
from ragalign.errors import GenerationError, RagalignError
from ragalign.generation.asynchronous import AsyncEngine
from ragalign.generator import ClosableAsyncIterator
from ragalign.planning.conversations import Conversations
from ragalign.serving.admission import Admission
from ragalign.serving.answering import Part, answer
from ragalign.serving.catalog import Catalog, Load
from ragalign.serving.conversations import Kept
from ragalign.serving.errors import ApiError, from_library
from ragalign.serving.idle_keeping import IdleKeeper
from ragalign.serving.metrics import Metrics
from ragalign.serving.preparing import Job, Prepared, Preparer
from ragalign.serving.reloading import SharedRuns
from ragalign.serving.requests import ChatRequest, CompletionRequest, RagalignOptions
from ragalign.serving.sampling import Capabilities
from ragalign.serving.settings import ServingSettings
from ragalign.tokenization import Tokenizer
from ragalign.types import Decoding, Prompt, Turn

# Maximum number of unknown field names to log, so that a client cannot fill memory or log with new ones.
_MOST_NAMES = 1_000
# Seconds that a request for metrics waits for the engine.
_ENGINE_ANSWERS_S = 5.0

log = logging.getLogger("ragalign.serving")


@dataclass(slots=True)
class RequestTimings:
    """The arrival of a request, and the times of its steps in seconds."""

    started: float = field(default_factory=time.perf_counter)
    queue_s: float = 0.0
    first_token_s: float | None = None
    total_s: float = 0.0

    def elapsed(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self.started


@dataclass(frozen=True, slots=True)
class ResolvedChat:
    """A chat request whose model name is resolved and whose fields are checked.

    Attributes:
        catalog: the generation of recipes that answers it, from beginning to end.
        recipe, aligner: what its model name selects.
        turns, decoding, options: see `ragalign.serving.requests`.
        logprobs: most likely tokens to report with each token; None for no log-probabilities.
        whole: the answer in one part.
    """

    catalog: Catalog
    recipe: str
    aligner: Aligner
    turns: Sequence[Turn]
    decoding: Decoding
    options: RagalignOptions
    logprobs: int | None
    whole: bool


Parts = ClosableAsyncIterator[Part]


class Service:
    """The state shared by all requests.

    Args:
        catalog: the recipes.
        generator: answers prompts.
        settings: see there.
        load: makes the aligners again from what is on disk; None for a service that cannot be reloaded.

    Attributes:
        is_draining: whether it is about to shut down, so that load balancers should send requests elsewhere.
    """

    def __init__(
        self, catalog: Catalog, generator: AsyncEngine, settings: ServingSettings, load: Load | None = None
    ) -> None:
        self.catalog = catalog
        self.generator = generator
        self.settings = settings
        limits = settings.limits
        self.admission = Admission(limits.max_running, limits.max_waiting)
        self.metrics = Metrics(self.admission)
        self.conversations = Conversations[Kept](limits.max_conversations)
        self._preparer = Preparer(settings.topic_threshold)
        self._known_unknown: set[str] = set()
        self.is_draining = False
        self._load = load
        self._reloads = SharedRuns(self._reload)
        self._keeper = IdleKeeper(generator, self.admission)

    @cached_property
    def capabilities(self) -> Capabilities:
        """The engine's capabilities, with the size of its tokenizer's vocabulary."""
        sizes = (getattr(self.generator, "vocabulary_size", None), self._tokenizer.vocabulary_size)
        known = min(size for size in sizes if size is not None)
        return Capabilities(known, frozenset(getattr(self.generator, "unsupported", ())))

    def warnings(self, asked: ChatRequest | CompletionRequest, lost: Sequence[str] = ()) -> dict[str, Any]:
        """The ``warnings`` of an answer, if there are any. The log has each unknown name once.

        Args:
            asked: the request.
            lost: fields of the recipe's decoding that the engine does not support.
        """
        for name in asked.unknown_fields():
            if name not in self._known_unknown and len(self._known_unknown) < _MOST_NAMES:
                self._known_unknown.add(name)
                log.warning("ignoring an unknown field in requests: %s", ascii(name[:64]))
        found = asked.warnings(lost)
        return {"warnings": found} if found else {}

    @property
    def _tokenizer(self) -> Tokenizer:
        return self.catalog.aligners[self.catalog.default].packer.tokenizer

    async def start(self) -> None:
        """Called once in the event loop, before the first request."""
        await self.generator.start()
        self._keeper.start()
        # Load the encoder now, not during a request.
        _, aligner = self.catalog.resolve(self.catalog.name)
        await asyncio.to_thread(self._tokenizer.fewest_tokens, ["hello"])
        try:
            await self._preparer.prepare(Job(aligner, [Turn("user", "hello")], max_new_tokens=1))
        except RagalignError as error:
            log.warning("the default recipe cannot pack a short question: %s", error)
        for recipe, aligner in self.catalog.aligners.items():
            _, lost = self.capabilities.served(aligner.decoding)
            for name in lost:
                log.warning("recipe %s is served without its %s: not supported by the engine", recipe, name)

    async def close(self) -> None:
        """Release the resources of the service."""
        self._reloads.cancel()
        self._preparer.close()
        await self._keeper.close()
        await self.generator.close()

    async def metrics_text(self) -> bytes:
        """All metrics in Prometheus's text format, with those of the engine's connector if it answers in time."""
        counts = getattr(self.generator, "reuse_counts", None)
        if counts is not None:
            with suppress(TimeoutError, GenerationError):  # then they are those of the last time
                async with asyncio.timeout(_ENGINE_ANSWERS_S):
                    self.metrics.reuse_engine.counts = await counts()
        return self.metrics.render()

    async def reload(self) -> Catalog:
        """Reload the index. Running requests finish with the old one, later ones use the new one.

        Calls that come while a reload runs share the next one, which begins after them.

        Raises:
            ApiError: 409, it cannot be reloaded, or what is on disk cannot be served; the old one stays.
        """
        return await self._reloads.run()

    def reload_soon(self) -> None:
        """`reload` for signal handlers; errors are logged."""
        self._reloads.start()

    async def _reload(self) -> Catalog:
        try:
            if self._load is None:
                raise ApiError(409, "this service was created from an aligner; there is nothing to reload from disk")
            try:
                aligners = await asyncio.to_thread(self._load)
            except RagalignError as error:
                self.metrics.reloads.labels("refused").inc()
                raise ApiError(409, f"the index was not reloaded, and the old one stays in use: {error}") from error
            except Exception:
                self.metrics.reloads.labels("refused").inc()
                log.exception("not reloaded: internal error")
                raise
        except ApiError as error:
            log.error("not reloaded: %s", error)
            raise
        self.catalog = self.catalog.reloaded(aligners)
        self.conversations.forget()
        self.metrics.reloads.labels("done").inc()
        log.info("reloaded: generation %d", self.catalog.version)
        return self.catalog

    @asynccontextmanager
    async def chat(self, chat: ResolvedChat, timings: RequestTimings) -> AsyncIterator[tuple[Prepared, Parts]]:
        """The prepared prompt of a conversation and the parts of its answer; it holds a place in the queue meanwhile.

        Raises:
            ApiError: any error, with its status.
        """
        most = self.settings.limits.max_prompt_tokens
        self._check_length([turn.content for turn in chat.turns], chat.decoding.max_tokens, "messages", most)
        async with self._place(timings):
            prepared = await self._prepare(chat)
            if most is not None and len(prepared.prompt.ids) > most:
                message = f"the prompt has {len(prepared.prompt.ids):,} tokens; at most {most:,} are allowed"
                raise ApiError(400, message, param="messages", code="context_length_exceeded")
            opening = next(turn.content for turn in chat.turns if turn.role == "user")
            prompt = replace(prepared.prompt, opening=opening)
            parts = self._answer(
                prompt, chat.decoding, chat.aligner, chat.recipe, timings, chat.logprobs, whole=chat.whole
            )
            async with aclosing(parts):
                yield prepared, parts

    @asynccontextmanager
    async def complete(
        self, prompt: str | list[int], decoding: Decoding, timings: RequestTimings, *, logprobs: int | None, whole: bool
    ) -> AsyncIterator[tuple[Prompt, Parts]]:
        """The prompt as token ids, and the parts of its completion, as the model writes them.

        Raises:
            ApiError: as `chat`.
        """
        if isinstance(prompt, str):
            self._check_length([prompt], decoding.max_tokens, "prompt")
        async with self._place(timings):
            size = len(prompt) if isinstance(prompt, str) else 0
            made = await self._preparer.run(lambda: self._plain_prompt(prompt), size)
            room = self.generator.context_length
            if room is not None and len(made.ids) + decoding.max_tokens > room:
                message = f"{len(made.ids):,} prompt tokens and {decoding.max_tokens:,} new ones exceed {room:,}"
                raise ApiError(400, message, param="prompt", code="context_length_exceeded")
            parts = self._answer(made, decoding, None, "none", timings, logprobs, whole=whole)
            async with aclosing(parts):
                yield made, parts

    def _check_length(self, texts: Sequence[str], max_tokens: int, param: str, most: int | None = None) -> None:
        """Reject texts that are too long in any case, before the request takes a place or is encoded.

        The bound is `Tokenizer.fewest_tokens`. Texts that pass can still be too long.

        Raises:
            ApiError: 400.
        """
        context = self.generator.context_length
        rooms = [] if context is None else [context - max_tokens]
        rooms += [] if most is None else [most]
        if rooms and sum(map(len, texts)) > min(rooms):  # most requests are short and need no count
            fewest = self._tokenizer.fewest_tokens(texts)
            if fewest > min(rooms):
                message = f"{param}: at least {fewest:,} tokens; at most {max(min(rooms), 0):,} fit here"
                raise ApiError(400, message, param=param, code="context_length_exceeded")

    def _plain_prompt(self, prompt: str | list[int]) -> Prompt:
        ids, text = prompt, ""
        if isinstance(prompt, str):
            tokenizer = self._tokenizer
            ids, text = [*tokenizer.prefix_ids, *tokenizer.encode(prompt), *tokenizer.suffix_ids], prompt
        if not ids:
            raise ApiError(400, "the prompt is empty", param="prompt")
        return Prompt(pieces=(text,), ids=np.array(ids, dtype=np.int32))

    @asynccontextmanager
    async def _place(self, timings: RequestTimings) -> AsyncIterator[None]:
        """Hold a place in the queue, and convert errors to `ApiError`."""
        try:
            async with self.admission.place():
                timings.queue_s = timings.elapsed()
                self.metrics.queue_s.observe(timings.queue_s)
                yield
        except RagalignError as error:
            raise from_library(error) from error

    async def _prepare(self, chat: ResolvedChat) -> Prepared:
        options, aligner = chat.options, chat.aligner
        packing = options.packing(aligner.packer.packing)
        if packing != aligner.packer.packing or options.candidates is not None:
            aligner = chat.catalog.tuned(aligner, packing, options.candidates)
        setting = f"{chat.catalog.version}\0{chat.recipe}\0{options.model_dump_json(exclude={'explain', 'refresh'})}"
        job = Job(
            aligner,
            chat.turns,
            chat.decoding.max_tokens,
            kept=None if options.refresh else self.conversations.find(setting, chat.turns),
            where=options.where,
            exclude=frozenset(options.exclude or ()),
        )
        prepared = await self._preparer.prepare(job)
        if prepared.kept is not None:
            self.conversations.keep(setting, chat.turns, prepared.kept)
        self.metrics.retrieval_s.observe(prepared.retrieval_s)
        self.metrics.packing_s.observe(prepared.packing_s)
        self.metrics.prompts.labels(chat.recipe, str(prepared.reused).lower()).inc()
        return prepared

    async def _answer(
        self,
        prompt: Prompt,
        decoding: Decoding,
        aligner: Aligner | None,
        recipe: str,
        timings: RequestTimings,
        logprobs: int | None,
        *,
        whole: bool,
    ) -> Parts:
        template = None if aligner is None else aligner.packer.template
        parts = answer(self.generator, prompt, decoding, template, logprobs=logprobs, whole=whole)
        n_tokens, n_cached, n_reused = 0, 0, 0
        is_counted = False  # whether the engine says what it reused
        try:
            async with aclosing(parts):
                async for part in parts:
                    if timings.first_token_s is None:
                        timings.first_token_s = timings.elapsed()
                        self.metrics.first_token_s.observe(timings.first_token_s)
                    n_tokens += part.n_tokens
                    if part.index == 0:
                        n_cached = part.n_cached_tokens or n_cached
                        n_reused = part.n_reused_tokens or n_reused
                        is_counted = is_counted or part.n_cached_tokens is not None
                        if aligner is not None:
                            aligner.online.learn(prompt, part.n_cached_tokens)
                    yield part
        finally:
            timings.total_s = timings.elapsed()
            self.metrics.request_s.observe(timings.total_s)
            self.metrics.prompt_tokens.labels(recipe).inc(len(prompt.ids))
            self.metrics.cached_tokens.labels(recipe).inc(n_cached)
            if aligner is not None and aligner.reuse is not None:
                self.metrics.reused_tokens.labels(recipe).inc(n_reused)
                if n_tokens:  # otherwise the request ended before the engine reported
                    outcomes = aligner.reuse.outcomes(prompt, n_reused if is_counted else None)
                    for outcome, n in outcomes.items():
                        self.metrics.reuse_pieces.labels(recipe, outcome).inc(n)
                self._keeper.note(aligner.reuse, prompt)
            self.metrics.output_tokens.labels(recipe).inc(n_tokens)
