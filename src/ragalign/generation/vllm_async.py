"""Generation for servers with vLLM's asynchronous engine."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Any

from ragalign._optional import require
from ragalign._quiet import environment, is_verbose, quiet_start
from ragalign.generation._vllm_requests import engine_prompt, sampling_params, token_counts
from ragalign.generation._vllm_start import check_options, fill_in, start_error
from ragalign.generation.asynchronous import RefusedError, UnavailableError
from ragalign.generation.base import one_line
from ragalign.generation.engine_options import EngineOptions
from ragalign.generator import ClosableAsyncIterator
from ragalign.models import locate_model
from ragalign.reuse_plan import merged_counts
from ragalign.types import Decoding, Delta, Prompt, TokenLogprob


class AsyncVllmGenerator:
    """vLLM's `AsyncLLM`: an `AsyncEngine` whose engine runs in a separate process.

    On CPUs torch has one thread in this process until `close`, unless OMP_NUM_THREADS is set: waiting threads of an
    encoder would compete with the engine's for the CPU, and both would take up to three times as long.

    Args:
        model, tokenizer, options, changes: as for `ragalign.generation.VllmGenerator`.

    Raises:
        ConfigError: an option is unknown or out of range, or the model folder does not exist.
        GenerationError: the engine did not start, for instance for lack of memory.
        MissingDependencyError: vLLM is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        tokenizer: str | Path | None = None,
        options: EngineOptions | None = None,
        **changes: Any,
    ) -> None:
        self._model = str(model)
        options = (options or EngineOptions()).with_changes(**changes)
        self._reuses = options.reuses
        self._engine: Any = _start(options.arguments(locate_model(model), tokenizer))
        self._n_threads = _leave_processor()
        self._context_length = int(self._engine.model_config.max_model_len)
        self._vocabulary_size = int(self._engine.model_config.get_vocab_size())
        self._counter = itertools.count()

    @property
    def model(self) -> str:
        """The model's name or folder."""
        return self._model

    @property
    def context_length(self) -> int:
        """Maximum tokens of prompt and completion together: the engine's `max_model_len`."""
        return self._context_length

    @property
    def vocabulary_size(self) -> int:
        """Number of rows of the model's embedding."""
        return self._vocabulary_size

    @property
    def unsupported(self) -> frozenset[str]:
        """Empty: vLLM supports all fields."""
        return frozenset()

    @property
    def is_ready(self) -> bool:
        """Whether the engine's process is alive."""
        return self._engine is not None and not self._engine.errored

    @property
    def n_running(self) -> int:
        """Number of requests in the engine."""
        return int(self._engine.get_num_unfinished_requests()) if self._engine is not None else 0

    async def reuse_counts(self) -> dict[str, int]:
        """The reuse connector's counts since the engine started, over all workers; empty without a connector.

        Raises:
            UnavailableError: the engine has died.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        if not self._reuses or self._engine is None:
            return {}
        try:
            workers: list[dict[str, int]] = await self._engine.collective_rpc("ragalign_reuse_counts")
        except EngineDeadError as error:
            raise UnavailableError("the engine has died; restart the service") from error
        return merged_counts(workers)

    async def start(self) -> None:
        """Do nothing: the engine has started in the constructor."""

    async def stream(
        self, prompt: Prompt, decoding: Decoding, *, sample: int = 0, logprobs: int | None = None, whole: bool = False
    ) -> ClosableAsyncIterator[Delta]:
        """See `AsyncEngine.stream`.

        Raises:
            RefusedError: the engine rejects the prompt or a parameter.
            UnavailableError: the engine has died.
        """
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if not self.is_ready:
            raise UnavailableError("the engine is not running")
        try:
            params = sampling_params(prompt, decoding, sample, stream=not whole, logprobs=logprobs)
            outputs = self._engine.generate(engine_prompt(prompt), params, f"ragalign-{next(self._counter)}")
            n_tokens = 0
            async with aclosing(outputs):
                async for output in outputs:
                    (answer,) = output.outputs
                    n_tokens += len(answer.token_ids)
                    n_cached, n_reused = token_counts(output, prompt)
                    yield Delta(
                        text=answer.text,
                        n_tokens=n_tokens,
                        finish_reason=(answer.finish_reason or "abort") if output.finished else None,
                        n_cached_tokens=n_cached,
                        logprobs=_logprobs(answer) if logprobs is not None else (),
                        n_reused_tokens=n_reused,
                    )
        except EngineDeadError as error:
            raise UnavailableError("the engine has died; restart the service") from error
        except EngineGenerateError as error:
            raise RefusedError(f"vLLM failed on this request: {one_line(error.__cause__ or error)}") from error
        except (ValueError, TypeError) as error:  # vLLM's validation errors are ValueErrors
            raise RefusedError(f"vLLM rejected the request: {one_line(error)}") from error

    async def close(self) -> None:
        """Stop the engine."""
        import torch

        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)
            torch.set_num_threads(self._n_threads)


def _start(options: dict[str, Any]) -> Any:
    verbose = is_verbose()  # before the variable is set below
    with ExitStack() as stack:
        stack.enter_context(environment(VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_STREAM="ext://sys.stderr"))
        if not verbose:
            stack.enter_context(environment(VLLM_LOGGING_LEVEL="ERROR", PYTHONWARNINGS="ignore"))
            if (logger := logging.getLogger("vllm")).level == logging.NOTSET:
                logger.setLevel(logging.ERROR)
        vllm = require("vllm", "the vLLM engine")
        check_options(options)
        fill_in(options, stack)
        stack.enter_context(_without_interrupts())
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            arguments = vllm.AsyncEngineArgs(**options, generation_config="vllm", disable_log_stats=True)
            if not verbose:
                # Not earlier: vLLM's logging in this process is bound to the stderr at the time of its import.
                stack.enter_context(quiet_start())
            return AsyncLLM.from_engine_args(arguments)
        except Exception as error:
            raise start_error(options["model"], error) from error


def _leave_processor() -> int:
    """Limit torch to one thread if the engine runs on the CPU; returns the previous number."""
    import torch
    from vllm.platforms import current_platform

    n_threads: int = torch.get_num_threads()
    if current_platform.is_cpu() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    return n_threads


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block Ctrl-C, which a terminal sends to all processes, in processes that start inside the block.

    The engine must keep running while the service finishes accepted requests; then the service stops it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    from multiprocessing import resource_tracker

    # The resource tracker unblocks the signal when it starts, so start it before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _logprobs(answer: Any) -> tuple[TokenLogprob, ...]:
    """Convert vLLM's dictionaries, one per new token, from token ids to log-probabilities, the sampled one included."""
    found = []
    for token_id, known in zip(answer.token_ids, answer.logprobs or (), strict=False):
        drawn = known[token_id]
        ranked = sorted(known.values(), key=lambda entry: entry.rank or 0)
        top = tuple((entry.decoded_token or "", float(entry.logprob)) for entry in ranked)
        found.append(TokenLogprob(drawn.decoded_token or "", float(drawn.logprob), top))
    return tuple(found)
