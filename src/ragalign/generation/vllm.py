"""Generation with vLLM's offline engine."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ragalign._optional import require
from ragalign.errors import ConfigError, GenerationError
from ragalign.generation._engine import EngineLoop
from ragalign.generation._quiet import environment, is_verbose, kept_process_state, quiet
from ragalign.generation.base import BaseGenerator, SampledOutput, as_requests, one_line
from ragalign.generation.distributions import Distributions, from_flat
from ragalign.generation.engine_options import EngineOptions
from ragalign.models import locate_model
from ragalign.stopping import merge_stops
from ragalign.types import ClosableIterator, Decoding, Delta, Output, Prompt

# Prompts share cached prefixes in whole blocks, so small blocks share most. 16 is vLLM's default on GPUs; its CPU
# attention supports only multiples of 32 (the default is 128).
GPU_BLOCK_SIZE = 16
CPU_BLOCK_SIZE = 32
# On CPUs the cache gets a quarter of the free memory, at most this.
CPU_CACHE_GIB = 4

# Prompts whose answers are scored at a time: few, since all of them have to stay in the cache.
_SCORED_TOGETHER = 4

# By name, so that an engine in another process finds it.
_OUTPUT_PENALTY = "ragalign.generation._output_penalty:OutputRepetitionPenalty"

_OWN_OPTIONS = {
    "disable_log_stats": "ragalign reads the prefix-cache counters from it",
    "generation_config": "every decoding parameter is passed explicitly",
    "skip_tokenizer_init": "stop strings need the tokenizer",
}


class VllmGenerator(BaseGenerator):
    """vLLM's offline engine, with token ids as input, all prompts of a call in one batch, and prefix caching.

    The engine runs inside this process if it needs only one device. Then it leaves no process when the program is
    killed, and needs no ``if __name__ == "__main__"`` guard. Only one such engine can exist at a time; with
    VLLM_ENABLE_V1_MULTIPROCESSING=1 each engine has its own processes (which survive a program that is killed). Calls
    from several threads share the engine's batches.

    Args:
        model: a folder or Hub id.
        tokenizer: a folder or Hub id, if not the model's.
        options: options of the engine.
        changes: changes to `options`, such as ``dtype="float32"``; any argument of `vllm.EngineArgs`.

    On CPUs the cache gets a quarter of the free memory, 1 to 4 GiB; VLLM_CPU_KVCACHE_SPACE (GiB) or
    `kv_cache_memory_bytes` override this. Set RAGALIGN_VERBOSE to show vLLM's messages.

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
        arguments = (options or EngineOptions()).with_changes(**changes).arguments(locate_model(model), tokenizer)
        engine = _start(arguments)
        self._llm: Any = engine
        self._penalises_output = _OUTPUT_PENALTY in (arguments.get("logits_processors") or ())
        self._context_length = int(engine.llm_engine.model_config.max_model_len)
        self._loop = EngineLoop(engine.llm_engine)
        # Runs at close, garbage collection or exit, whichever is first.
        self._finalizer = weakref.finalize(self, _stop, engine)

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
        return int(self._engine().llm_engine.model_config.get_vocab_size())

    @property
    def shares_cpu(self) -> bool:
        """Whether vLLM runs on the CPU."""
        from vllm.platforms import current_platform

        return bool(current_platform.is_cpu())

    def prefix_cache_counters(self) -> tuple[int, int]:
        """Prompt tokens looked up in the prefix cache, and those found there, since the engine started."""
        totals = {"vllm:prefix_cache_queries": 0, "vllm:prefix_cache_hits": 0}
        for metric in self._engine().get_metrics():
            if metric.name in totals:
                totals[metric.name] += metric.value
        queries, hits = totals.values()
        return queries, hits

    def reset_prefix_cache(self) -> bool:
        """Empty the prefix cache; always returns True.

        Raises:
            GenerationError: prompts are being answered.
        """
        if not self._engine().llm_engine.reset_prefix_cache():
            raise GenerationError("the prefix cache is in use; wait until all prompts are answered")
        return True

    def _check(self, prompts: Sequence[Prompt], decoding: Decoding) -> None:
        super()._check(prompts, decoding)
        if decoding.output_repetition_penalty != 1 and not self._penalises_output:
            raise ConfigError("output_repetition_penalty: not supported with speculative decoding; remove one of them")

    def close(self) -> None:
        """Stop the engine and free its memory; the generator cannot be used afterwards."""
        self._llm = None
        self._finalizer()

    def _samples(self, prompts: Iterable[Prompt], decoding: Decoding) -> ClosableIterator[SampledOutput]:
        self._engine()
        inputs: Iterable[tuple[dict[str, Any], Any, tuple[int, int, Prompt]]] = (
            (engine_prompt(prompt), sampling_params(prompt, decoding, sample), (index, sample, prompt))
            for index, sample, prompt in as_requests(prompts, decoding.n)
        )
        if isinstance(prompts, Sequence):
            inputs = list(inputs)
        with closing(self._loop.run(inputs)) as outputs:
            for (index, sample, prompt), output, latency_s in outputs:
                (answer,) = output.outputs
                n_cached, n_reused = token_counts(output)
                yield SampledOutput(
                    index=index,
                    sample=sample,
                    prompt=prompt,
                    output=Output(
                        answer.text, answer.finish_reason or "abort", len(answer.token_ids), tuple(answer.token_ids)
                    ),
                    n_cached_tokens=n_cached,
                    latency_s=latency_s,
                    first_token_s=_first_token_s(output.metrics),
                    n_reused_tokens=n_reused,
                )

    def _deltas(self, prompt: Prompt, decoding: Decoding) -> ClosableIterator[Delta]:
        self._engine()
        params = sampling_params(prompt, decoding, 0, stream=True)
        n_tokens = 0
        with closing(self._loop.run([(engine_prompt(prompt), params, None)])) as outputs:
            for _, output, _ in outputs:
                (answer,) = output.outputs
                n_tokens += len(answer.token_ids)
                reason = (answer.finish_reason or "abort") if output.finished else None
                n_cached, n_reused = token_counts(output)
                yield Delta(answer.text, n_tokens, reason, n_cached, n_reused_tokens=n_reused)

    def _distributions(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], top_k: int | None
    ) -> Iterator[tuple[int, Distributions]]:
        """Use the engine's prompt log-probabilities; such prompts do not read the prefix cache."""
        from vllm import SamplingParams

        limit = self._engine().llm_engine.model_config.max_logprobs
        if limit != -1 and (top_k is None or top_k > limit):
            raise ConfigError(
                f"the engine returns at most {limit} probabilities per position; create it with max_logprobs=-1"
            )
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=-1 if top_k is None else top_k,
            flat_logprobs=True,
            detokenize=False,
        )
        inputs = [(token_prompt(ids), params.clone(), position) for position, ids in enumerate(sequences)]
        with closing(self._loop.run(inputs)) as outputs:
            for position, output, _ in outputs:
                if output.finished:
                    ids, start = sequences[position], starts[position]
                    yield position, from_flat(output.prompt_logprobs, ids, start, full=top_k is None)

    def continuations(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], *, top_k: int
    ) -> Iterator[tuple[int, Distributions]]:
        """Compute the model's predictions for each token of given answers; prompts can reuse demonstrations.

        Unlike `distributions`, this reads caches, since only the answers' probabilities are needed.

        Args:
            prompts: the prompts.
            answers: token ids of the answer to each prompt, at least one.
            top_k: number of most probable tokens per position.

        Returns:
            (position in `prompts`, distributions), in any order.
        """
        from vllm import SamplingParams

        self._engine()
        for first in range(0, len(prompts), _SCORED_TOGETHER):
            cached, scored = [], []
            group = list(zip(prompts, answers, strict=True))[first : first + _SCORED_TOGETHER]
            for position, (prompt, answer) in enumerate(group, first):
                extra = None if prompt.reuse is None else {"kv_transfer_params": prompt.reuse.params()}
                common = {"temperature": 0.0, "max_tokens": 1, "detokenize": False, "extra_args": extra}
                scoring = {"prompt_logprobs": top_k, "flat_logprobs": True, "skip_reading_prefix_cache": False}
                given = engine_prompt(prompt)
                # But for its last token, where the answer's first one is expected.
                beginning = given | {"prompt_token_ids": prompt.token_ids[:-1]}
                cached.append((beginning, SamplingParams(**common), position))
                whole = given | {"prompt_token_ids": [*prompt.token_ids, *answer]}
                scored.append((whole, SamplingParams(**common, **scoring), position))
            # The engine makes probabilities of the whole vocabulary for every token that it has not cached: without
            # this, for a whole prompt, which takes gigabytes.
            with closing(self._loop.run(cached)) as outputs:
                for _ in outputs:
                    pass
            with closing(self._loop.run(scored)) as outputs:
                for position, output, _ in outputs:
                    if output.finished:
                        ids, start = output.prompt_token_ids, len(prompts[position].ids)
                        yield position, from_flat(output.prompt_logprobs, ids, start, full=False)

    def _engine(self) -> Any:
        if self._llm is None:
            raise GenerationError(f"the generator of {self._model} is closed")
        return self._llm


def _first_token_s(metrics: Any) -> float | None:
    """Seconds from scheduling to the first token, by the engine's clock."""
    first, scheduled = getattr(metrics, "first_token_ts", 0.0), getattr(metrics, "scheduled_ts", 0.0)
    return first - scheduled if 0 < scheduled <= first else None


def token_prompt(ids: Sequence[int]) -> dict[str, Any]:
    """Token ids as vLLM's front end passes them to the engine; the key "type" marks them as ready."""
    return {"type": "token", "prompt_token_ids": list(ids)}


def engine_prompt(prompt: Prompt) -> dict[str, Any]:
    """A prompt for the engine; with reused demonstrations, a salt separates its cached blocks from others."""
    salt = {} if prompt.reuse is None else {"cache_salt": prompt.reuse.cache_salt}
    return token_prompt(prompt.token_ids) | salt


def token_counts(output: Any) -> tuple[int | None, int]:
    """Cached prompt tokens, and tokens of reused demonstrations, which the engine also counts as cached."""
    told = (getattr(output, "kv_transfer_params", None) or {}).get("ragalign") or {}
    n_reused = int(told.get("n_reused_tokens", 0))
    # vLLM's own count still includes tokens that could not be loaded.
    n_cached = told.get("n_ready_tokens", output.num_cached_tokens)
    return (None if n_cached is None else max(0, n_cached - n_reused)), n_reused


def sampling_params(
    prompt: Prompt, decoding: Decoding, sample: int, *, stream: bool = False, logprobs: int | None = None
) -> Any:
    """The vLLM sampling parameters for the `sample`-th answer, with `logprobs` top tokens for each token."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    penalty = decoding.output_repetition_penalty
    extra: dict[str, Any] = {} if penalty == 1 else {"output_repetition_penalty": penalty}
    if prompt.reuse is not None:
        extra["kv_transfer_params"] = prompt.reuse.params()
    return SamplingParams(
        n=1,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        max_tokens=decoding.max_tokens,
        seed=None if decoding.seed is None else decoding.seed + sample,
        repetition_penalty=decoding.repetition_penalty,
        presence_penalty=decoding.presence_penalty,
        frequency_penalty=decoding.frequency_penalty,
        extra_args=extra or None,
        stop=list(merge_stops(prompt.stop, decoding.stop)),
        top_k=decoding.top_k,
        min_p=decoding.min_p,
        min_tokens=decoding.min_tokens,
        stop_token_ids=list(decoding.stop_token_ids),
        ignore_eos=decoding.ignore_eos,
        logit_bias=dict(decoding.logit_bias) or None,
        logprobs=logprobs,
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
    )


def _start(options: dict[str, Any]) -> Any:
    """Create a `vllm.LLM` with these options; None means the default."""
    in_process = options["tensor_parallel_size"] == 1 and options.get("pipeline_parallel_size", 1) == 1
    in_process = in_process and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0") == "0"
    with ExitStack() as stack:
        # No usage reports unless the user enables them, and only results on stdout.
        stack.enter_context(environment(VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_STREAM="ext://sys.stderr"))
        if not is_verbose() and not in_process:
            stack.enter_context(environment(VLLM_LOGGING_LEVEL="ERROR"))
        if in_process:
            stack.enter_context(environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"))
            stack.enter_context(kept_process_state())
            if not is_verbose():
                # Without its own handlers vLLM follows the program's logging. `quiet` redirects native output, which
                # worker processes would inherit, so it is only used without them.
                stack.enter_context(environment(VLLM_CONFIGURE_LOGGING="0"))
                stack.enter_context(quiet())
        if not is_verbose() and (logger := logging.getLogger("vllm")).level == logging.NOTSET:
            logger.setLevel(logging.ERROR)
        vllm = require("vllm", "the vLLM engine")
        check_options(options)
        fill_in(options, stack)
        if in_process:
            _check_alone()
            _survive_numba()
        try:
            return vllm.LLM(**options, generation_config="vllm", disable_log_stats=False)
        except Exception as error:
            if in_process:
                from vllm.distributed import cleanup_dist_env_and_memory

                cleanup_dist_env_and_memory()
            raise start_error(options["model"], error) from error


def fill_in(options: dict[str, Any], stack: ExitStack) -> None:
    """Replace None by defaults that depend on the device."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    if options["block_size"] is None:
        options["block_size"] = CPU_BLOCK_SIZE if on_cpu else GPU_BLOCK_SIZE
    if options["enforce_eager"] is None:
        options["enforce_eager"] = on_cpu
    if options.get("speculative_config") is None:  # vLLM does not support processors with it
        options["logits_processors"] = [*(options.get("logits_processors") or ()), _OUTPUT_PENALTY]
    if on_cpu:
        # After a partial prefill vLLM (0.32) rewinds the random generator of a seeded request, which torch's CPU
        # generators do not support: such a request crashes the engine.
        options.setdefault("enable_chunked_prefill", False)
    if on_cpu and options.get("kv_cache_memory_bytes") is None:
        gib = require("psutil", "the vLLM engine").virtual_memory().available // 4 // 2**30
        stack.enter_context(environment(VLLM_CPU_KVCACHE_SPACE=str(min(max(gib, 1), CPU_CACHE_GIB))))


def _stop(llm: Any) -> None:
    """Shut down an engine; can be called more than once."""
    with quiet():
        llm.llm_engine.engine_core.shutdown()
        gc.collect()


def _check_alone() -> None:
    """Reject a second engine in this process: it would share process groups, which closing an engine destroys."""
    from vllm.distributed.parallel_state import model_parallel_is_initialized

    if model_parallel_is_initialized():
        gc.collect()  # an engine without references
    if model_parallel_is_initialized():
        raise GenerationError(
            "a vLLM engine is already running in this process; close() the first generator, "
            "or set VLLM_ENABLE_V1_MULTIPROCESSING=1 to give each engine its own process"
        )


def _survive_numba() -> None:
    """Let vLLM (0.32, CPU) start in a process that has imported numba, as bm25s does.

    vLLM reads the ``__dict__`` of every attribute of every module. One object of llvmlite treats any name, including
    ``__dict__``, as a function of its library, and vLLM fails on the result.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    functions = getattr(getattr(ffi, "lib", None), "_fntab", None)
    if isinstance(functions, dict):
        functions.setdefault("__dict__", {})


def check_options(options: dict[str, Any]) -> None:
    """Reject options that vLLM does not know, or that ragalign depends on."""
    from vllm import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in options:
        if name in _OWN_OPTIONS:
            raise ConfigError(f"the vLLM option {name!r} cannot be changed: {_OWN_OPTIONS[name]}")
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ConfigError(f"vLLM has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def start_error(model: str, error: Exception) -> ConfigError | GenerationError:
    """The reason why the engine did not start, in one line."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return GenerationError(f"vLLM could not start {model}: {one_line(error)}")
    # One reason per option: otherwise each alternative of a union has its own.
    reasons = {str(detail["loc"][0]) if detail["loc"] else "": detail["msg"] for detail in reversed(error.errors())}
    text = "; ".join(f"{name}: {reason}" if name else reason for name, reason in reasons.items())
    text = one_line(ValueError(text.replace("Value error, ", "")))
    return ConfigError(f"vLLM rejected these options for {model}: {text}")
