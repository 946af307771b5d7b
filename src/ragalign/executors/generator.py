"""A generator whose engines are actors on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError
from ragalign.executors.cluster import connect, path_on_workers
from ragalign.executors.crew import Crew
from ragalign.executors.room import free_resources, node_resources, plan_workers, wait_for_room
from ragalign.executors.sharing import share
from ragalign.executors.worker import EngineInfo, EngineWorker
from ragalign.generation.base import BaseGenerator, SampledOutput
from ragalign.generation.distributions import Distributions
from ragalign.generator import ClosableIterator
from ragalign.types import Completion, Decoding, Delta, Prompt

# Prompts given to a worker at a time.
_RUN = 256


class RayGenerator(BaseGenerator):
    """Answers prompts with one engine per GPU, or several per machine, each in an actor on a Ray cluster.

    Prompts are divided into contiguous runs in the order in which they come (see `ragalign.executors.division`), so
    prompts planned to share prefixes share an engine. Answers come in any order. If an actor dies, its unfinished
    prompts are given out again and a new actor is started; answers that have arrived are kept. A prompt over which
    actors keep dying ends the work. Decoding with a seed gives the answers of a single engine, as far as its kernels do
    not depend on the batch.

    Args:
        model: as in `ragalign.generation.make_generator`; a folder must be the same on all nodes.
        backend: ``auto``, ``vllm`` or ``transformers``.
        address: ``local``, ``auto`` or an address; see `ragalign.executors.connect`.
        workers: number of engines; by default as many as the cluster has GPUs for, or one without GPUs.
        cpus: CPUs of each engine; by default one beside a GPU, otherwise an even share of what is free.
        context_length: maximum tokens of prompt and completion together, if less than the model's.
        tokenizer: as in `make_generator`.
        run_size: prompts given to an engine at a time.
        options: options of the engine, such as ``dtype="bfloat16"``.

    Raises:
        ConfigError: no cluster can be reached, it is too small, or an option is wrong.
        GenerationError: an engine did not start, or other jobs use the cluster.
        MissingDependencyError: Ray is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        backend: str = "auto",
        address: str = "auto",
        workers: int | None = None,
        cpus: float | None = None,
        context_length: int | None = None,
        tokenizer: str | Path | None = None,
        run_size: int = _RUN,
        **options: Any,
    ) -> None:
        if backend.startswith(("http://", "https://")) or backend == "openai":
            raise ConfigError("an endpoint needs no Ray cluster: leave out the cluster, or name a backend with engines")
        if run_size < 1:
            raise ConfigError(f"run_size must be at least 1, not {run_size}")
        self._model, self._run_size = str(model), run_size
        if tokenizer is not None:
            options["tokenizer"] = path_on_workers(tokenizer)
        self._stack = ExitStack()
        try:
            ray = self._stack.enter_context(connect(address))
            gpus = float(options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1))
            need = plan_workers(node_resources(ray), workers, gpus=gpus, cpus=cpus, free=free_resources(ray))
            wait_for_room(ray, need)
            self._n_workers = need.workers
            arguments = (backend, path_on_workers(model), context_length, options)
            # A second thread lets a batching engine work on two runs at once. On CPUs, vLLM depends on OpenMP settings
            # of the thread that started it, so there the second run waits in the actor for the end of the first.
            threads = 2 if need.gpus else 1
            self._crew: Crew[EngineInfo] = Crew(ray, need, EngineWorker, arguments, n_threads=threads)
            self._stack.callback(self._crew.end)
            self._about = self._crew.first()
        except BaseException:
            self._stack.close()
            raise

    @property
    def model(self) -> str:
        """The model's name or folder."""
        return self._model

    @property
    def context_length(self) -> int | None:
        """Maximum tokens of prompt and completion together, of the first engine."""
        return self._about.context_length

    @property
    def vocabulary_size(self) -> int | None:
        """The size of the model's vocabulary."""
        return self._about.vocabulary_size

    @property
    def unsupported(self) -> frozenset[str]:
        """The fields of `Decoding` that the engines do not support."""
        return self._about.unsupported

    @property
    def n_workers(self) -> int:
        """The number of engines."""
        return self._n_workers

    def worker_pids(self) -> list[int]:
        """The process ids of the engines that have started, each on its node."""
        return [about.pid for _, about in self._crew.started]

    def reset_prefix_cache(self) -> bool:
        """Empty the prefix caches of all engines; returns whether they have one.

        Engines that are starting are waited for, but not those that find no place on the cluster.
        """
        return all(self._crew.call_all("reset_prefix_cache"))

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        self._stack.close()

    def _samples(self, prompts: Iterable[Prompt], decoding: Decoding) -> ClosableIterator[SampledOutput]:
        with closing(self._answers(prompts, decoding)) as answers:
            for position, completion in answers:
                for sample, output in enumerate(completion.outputs):
                    yield SampledOutput(
                        position,
                        sample,
                        completion.prompt,
                        output,
                        completion.n_cached_tokens,
                        completion.latency_s,
                        completion.first_token_s,
                        completion.n_reused_tokens,
                    )

    def _deltas(self, prompt: Prompt, decoding: Decoding) -> ClosableIterator[Delta]:
        """The whole answer in one part: streams are for one engine."""
        [(_, completion)] = self._answers([prompt], decoding)
        [output] = completion.outputs
        yield Delta(
            output.text,
            output.n_tokens,
            output.finish_reason,
            completion.n_cached_tokens,
            n_reused_tokens=completion.n_reused_tokens,
        )

    def _distributions(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], top_k: int | None
    ) -> Iterator[tuple[int, Distributions]]:
        return self._scored(sequences, starts, "distributions", top_k)

    def _token_logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        return self._scored(sequences, starts, "token_logprobs")

    def _scored(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], method: str, *arguments: Any
    ) -> Iterator[tuple[int, Any]]:
        items = [(np.asarray(ids, dtype=np.int32), start) for ids, start in zip(sequences, starts, strict=True)]
        ids_of, name_of = itemgetter(0), lambda position, item: _name("sequence", position, item[0])
        shared = share(self._crew, items, method, *arguments, run_size=self._run_size, ids_of=ids_of, name_of=name_of)
        with closing(shared) as results:
            for positions, _, found in results:
                yield from zip(positions, found, strict=True)

    def _answers(self, prompts: Iterable[Prompt], decoding: Decoding) -> ClosableIterator[tuple[int, Completion]]:
        shared = share(
            self._crew,
            prompts,
            "answer",
            decoding,
            run_size=self._run_size,
            ids_of=lambda prompt: prompt.ids,
            name_of=lambda position, prompt: _name("prompt", position, prompt.ids),
        )
        with closing(shared) as results:
            for positions, asked, answers in results:
                for position, prompt, answer in zip(positions, asked, answers, strict=True):
                    yield position, answer.completion(prompt)


def _name(kind: str, position: int, ids: NDArray[np.int32]) -> str:
    return f"the {kind} at position {position} (from 0, {len(ids):,} tokens)"
