"""Generation with vLLM's offline engine."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError, GenerationError
from ragalign.generation._engine import EngineLoop
from ragalign.generation._vllm_requests import (
    engine_prompt,
    first_token_s,
    sampling_params,
    scoring_requests,
    token_counts,
    token_prompt,
)
from ragalign.generation._vllm_start import OUTPUT_PENALTY, start_engine, stop_engine
from ragalign.generation.base import BaseGenerator, SampledOutput, as_requests
from ragalign.generation.distributions import MIN_TOP_K, Distributions, from_flat
from ragalign.generation.engine_options import EngineOptions
from ragalign.generator import ClosableIterator
from ragalign.models import locate_model
from ragalign.types import Decoding, Delta, Output, Prompt

# Prompts whose answers are scored at a time; all of them have to stay in the cache.
_SCORED_TOGETHER = 16


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
        engine = start_engine(arguments)
        self._llm: Any = engine
        self._penalises_output = OUTPUT_PENALTY in (arguments.get("logits_processors") or ())
        self._context_length = int(engine.llm_engine.model_config.max_model_len)
        self._loop = EngineLoop(engine.llm_engine)
        # Runs at close, garbage collection or exit, whichever is first.
        self._finalizer = weakref.finalize(self, stop_engine, engine)

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
                n_cached, n_reused = token_counts(output, prompt)
                yield SampledOutput(
                    index=index,
                    sample=sample,
                    prompt=prompt,
                    output=Output(
                        answer.text, answer.finish_reason or "abort", len(answer.token_ids), tuple(answer.token_ids)
                    ),
                    n_cached_tokens=n_cached,
                    latency_s=latency_s,
                    first_token_s=first_token_s(output.metrics),
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
                n_cached, n_reused = token_counts(output, prompt)
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

    def _token_logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Read the prefix cache, in an order in which sequences find each other's beginnings there."""
        # Of these, nothing can be cached before the answer.
        short = [place for place, start in enumerate(starts) if start == 1]
        for number, shown in self._distributions([sequences[place] for place in short], [1] * len(short), MIN_TOP_K):
            yield short[number], shown.logprobs
        order = sorted(
            (place for place, start in enumerate(starts) if start > 1), key=lambda place: list(sequences[place])
        )
        prompts = [Prompt(("",), np.asarray(sequences[place][: starts[place]], dtype=np.int32)) for place in order]
        answers = [sequences[place][starts[place] :] for place in order]
        for number, shown, _ in self.continuations(prompts, answers, top_k=1, together=_SCORED_TOGETHER):
            yield order[number], shown.logprobs

    def continuations(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], *, top_k: int, together: int = 4
    ) -> Iterator[tuple[int, Distributions, int]]:
        """Compute the model's predictions for each token of given answers; prompts can reuse demonstrations.

        Unlike `distributions`, this reads caches, since only the answers' probabilities are needed. The engine gives
        none for positions that it finds in a cache; where these reach into an answer, it is asked again with a cache
        of its own.

        Args:
            prompts: the prompts.
            answers: token ids of the answer to each prompt, at least one.
            top_k: number of most probable tokens per position.
            together: prompts that are scored at a time; all of them have to stay in the cache.

        Returns:
            (position in `prompts`, distributions, tokens of reused demonstrations), in any order. The last is what the
            engine reused, which is less than planned where keys and values cannot be loaded.
        """
        self._engine()
        for first in range(0, len(prompts), together):
            positions = list(range(first, min(first + together, len(prompts))))
            for is_apart in (False, True):
                asked = [
                    scoring_requests(prompts[position], answers[position], top_k, is_apart=is_apart)
                    for position in positions
                ]
                cached = [(*beginning, position) for position, (beginning, _) in zip(positions, asked, strict=True)]
                scored = [(*whole, position) for position, (_, whole) in zip(positions, asked, strict=True)]
                again = []
                # The engine makes probabilities of the whole vocabulary for every token that it has not cached:
                # without this, for a whole prompt, which takes gigabytes.
                n_reused = dict.fromkeys(positions, 0)
                with closing(self._loop.run(cached)) as outputs:
                    for position, output, _ in outputs:
                        if output.finished:
                            _, n_reused[position] = token_counts(output, prompts[position])
                with closing(self._loop.run(scored)) as outputs:
                    for position, output, _ in outputs:
                        if not output.finished:
                            continue
                        ids, start = output.prompt_token_ids, len(prompts[position].ids)
                        # The prompt's last token is where the answer's first one is expected.
                        if (output.num_cached_tokens or 0) >= start:
                            again.append(position)
                        else:
                            found = from_flat(output.prompt_logprobs, ids, start, full=False)
                            yield position, found, n_reused[position]
                positions = again

    def _engine(self) -> Any:
        if self._llm is None:
            raise GenerationError(f"the generator of {self._model} is closed")
        return self._llm
