"""Isolating the process that starts an engine from the engine's output, environment and random seeds."""

from __future__ import annotations

import ctypes
import os
import random
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np


def is_verbose() -> bool:
    """Whether to show the output of engines: RAGALIGN_VERBOSE or VLLM_LOGGING_LEVEL is set."""
    return bool(os.environ.get("RAGALIGN_VERBOSE") or os.environ.get("VLLM_LOGGING_LEVEL"))


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables that are not set, inside a block."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence native code and Python warnings inside a block; Python's own output to stderr stays visible.

    Torch and its communication libraries print from C++, independent of all Python settings, and partly to stdout,
    where it would corrupt JSON Lines. File descriptors 1 and 2 point to a scratch file inside the block, while
    `sys.stderr` keeps its target, so that progress bars and logged errors are still shown.
    """
    if is_verbose():
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        scratch = stack.enter_context(tempfile.TemporaryFile())
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            stack.enter_context(_redirected(descriptor, name, scratch.fileno()))
        yield


@contextmanager
def quiet_start() -> Iterator[None]:
    """Discard the output of this process and its new children while an engine starts; forward later output.

    An engine in separate processes inherits the file descriptors. The output of its libraries during the start is
    noise; later output, such as the traceback of a crash, goes to stderr.
    """
    reading, writing = os.pipe()
    started = threading.Event()
    threading.Thread(target=_forward, args=(reading, started), daemon=True).start()
    try:
        with ExitStack() as stack:
            for descriptor, name in ((1, "stdout"), (2, "stderr")):
                stack.enter_context(_redirected(descriptor, name, writing))
            yield
    finally:
        os.close(writing)
        started.set()


def _forward(reading: int, started: threading.Event) -> None:
    """Read lines to the end of a pipe; lines after the start of the engine go to stderr."""
    with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if started.is_set() and line.strip() and sys.stderr is not None:
                sys.stderr.write(line)
                sys.stderr.flush()


def _flush_c() -> None:
    """Write what C code has printed: where stdout is no terminal, its library keeps output back."""
    ctypes.CDLL(None).fflush(None)


@contextmanager
def _redirected(descriptor: int, name: str, target: int) -> Iterator[None]:
    stream = getattr(sys, name)
    try:
        saved = os.dup(descriptor)
    except OSError:  # closed, as under a service manager
        yield
        return
    replacement = None
    try:
        if stream is not None and _descriptor_of(stream) == descriptor:
            stream.flush()
            replacement = os.fdopen(os.dup(saved), "w", encoding=stream.encoding, errors=stream.errors, buffering=1)
            setattr(sys, name, replacement)
        _flush_c()
        os.dup2(target, descriptor)
        yield
    finally:
        _flush_c()
        os.dup2(saved, descriptor)
        os.close(saved)
        if replacement is not None:
            setattr(sys, name, stream)
            replacement.close()


def _descriptor_of(stream: object) -> int | None:
    try:
        return int(stream.fileno())  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):  # replaced by a notebook or a test runner
        return None


@contextmanager
def kept_process_state() -> Iterator[None]:
    """Restore the state of the process that an engine changes when it starts.

    The engine reseeds Python, NumPy and torch, and torch.distributed replaces `sys.excepthook` by one that prefixes
    every line with a rank.
    """
    import torch

    hook = sys.excepthook
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        sys.excepthook = hook
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
