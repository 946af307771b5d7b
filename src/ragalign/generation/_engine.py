"""Running a vLLM `LLMEngine` step by step for several callers at once."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import closing
from typing import Any, TypeVar

from ragalign.errors import GenerationError
from ragalign.generation.ahead import Ahead
from ragalign.generation.base import one_line
from ragalign.generator import ClosableIterator

# Maximum requests of a caller in the engine at a time: enough to keep any engine busy.
_IN_ENGINE = 4096

T = TypeVar("T")


class EngineLoop:
    """Adds requests to an engine and returns each caller its own outputs.

    `LLM.generate` runs until the engine is empty and returns all outputs, so two interleaved callers would take each
    other's outputs. Here a step by any caller serves all: outputs go to the box of the caller they belong to, so
    batches and streams from several threads share the engine's batches.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._boxes: dict[str, deque[tuple[Any, float]]] = {}
        self._counter = itertools.count()
        self._failure: str | None = None

    def run(self, inputs: Iterable[tuple[dict[str, Any], Any, T]]) -> ClosableIterator[tuple[T, Any, float]]:
        """Answer requests (vLLM prompt, SamplingParams, tag), enqueued in the given order.

        An iterator is read in a thread.

        Yields (tag, RequestOutput, seconds since the request was added). Unfinished requests are aborted when the
        iterator is closed or an error occurs.

        Raises:
            GenerationError: the engine fails, or has failed before.
        """
        box: deque[tuple[Any, float]] = deque()
        unfinished: dict[str, tuple[T, float]] = {}
        with closing(Ahead(inputs)) as coming:
            try:
                while True:
                    fresh = coming.take(_IN_ENGINE - len(unfinished), wait=False)
                    if not fresh and not unfinished and not box:
                        fresh = coming.take(1, wait=True)
                        if not fresh:
                            return
                    if fresh:
                        self._add(fresh, box, unfinished)
                    if not box:
                        self._step(box)
                        continue
                    output, finished_at = box.popleft()
                    asked, added_at = unfinished[output.request_id]
                    if output.finished:
                        del unfinished[output.request_id]
                    yield asked, output, finished_at - added_at
            finally:
                if unfinished:
                    self._abort(list(unfinished))

    def _check(self) -> None:
        if self._failure is not None:
            raise GenerationError(f"the vLLM engine cannot continue: {self._failure}; create a new generator")

    def _add(
        self,
        inputs: Iterable[tuple[dict[str, Any], Any, T]],
        box: deque[tuple[Any, float]],
        unfinished: dict[str, tuple[T, float]],
    ) -> None:
        with self._lock:
            self._check()
            for prompt, params, asked in inputs:
                name = f"ragalign-{next(self._counter)}"
                try:
                    self._engine.add_request(name, prompt, params)
                except Exception as error:  # vLLM's type for it differs between versions
                    raise GenerationError(f"vLLM rejected a prompt: {one_line(error)}") from error
                unfinished[name] = asked, time.perf_counter()
                self._boxes[name] = box

    def _step(self, box: deque[tuple[Any, float]]) -> None:
        with self._lock:
            if box:  # another caller's step has filled it meanwhile
                return
            self._check()
            try:
                outputs = self._engine.step()
            except BaseException as error:
                # An interrupted step, also by Ctrl-C, leaves the scheduler and the model inconsistent.
                self._failure = f"a step was interrupted ({one_line(error)})"
                if isinstance(error, Exception):
                    self._failure = f"a step failed ({one_line(error)})"
                    raise GenerationError(f"the vLLM engine failed: {one_line(error)}") from error
                raise
            now = time.perf_counter()
            for output in outputs:
                owner = self._boxes.get(output.request_id)
                if owner is None:
                    continue
                owner.append((output, now))
                if output.finished:
                    del self._boxes[output.request_id]

    def _abort(self, names: list[str]) -> None:
        with self._lock:
            for name in names:
                self._boxes.pop(name, None)
            if self._failure is None:
                self._engine.abort_request(names)
