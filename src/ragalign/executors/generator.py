"""A generator whose engines are actors on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError
from ragalign.executors.cluster import (
    WorkerResources,
    connect,
    n_free_cpus,
    node_resources,
    path_on_workers,
    plan_workers,
    wait_for_room,
)
from ragalign.executors.crew import Crew
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
    prompts are given out again and a new actor is started; answers that have arrived are kept. Decoding with a seed
    gives the answers of a single engine, as far as its kernels do not depend on the batch.

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
        self._model = str(model)
        if tokenizer is not None:
            options["tokenizer"] = path_on_workers(tokenizer)
        self._stack = ExitStack()
        try:
            ray = self._stack.enter_context(connect(address))
            gpus = float(options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1))
            need = plan_workers(node_resources(ray), workers, gpus=gpus, free_cpus=n_free_cpus(ray))
            self._need = need if cpus is None else WorkerResources(need.workers, cpus, need.gpus)
            wait_for_room(ray, self._need)
            self._crew = Crew(ray, self._need, (backend, path_on_workers(model), context_length, options), run_size)
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
        return self._need.workers

    def worker_pids(self) -> list[int]:
        """The process ids of the engines that have started, each on its node."""
        return self._crew.pids

    def reset_prefix_cache(self) -> bool:
        """Empty the prefix caches of all engines; returns whether they have one."""
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
        with closing(self._crew.run(items, lambda item: item[0], method, *arguments)) as results:
            for position, _, result in results:
                yield position, result

    def _answers(self, prompts: Iterable[Prompt], decoding: Decoding) -> ClosableIterator[tuple[int, Completion]]:
        with closing(self._crew.run(prompts, lambda prompt: prompt.ids, "answer", decoding)) as results:
            for position, prompt, answer in results:
                yield position, answer.completion(prompt)
