"""Keeps an engine's chatter, environment and random seeds from leaking into the process that starts it."""

from __future__ import annotations

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
    """Whether the user asked to see what engines print: RAGALIGN_VERBOSE or VLLM_LOGGING_LEVEL is set."""
    return bool(os.environ.get("RAGALIGN_VERBOSE") or os.environ.get("VLLM_LOGGING_LEVEL"))


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables that are not set, and unset them again afterwards."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence native code and Python warnings; what Python itself writes to stderr stays visible.

    Torch and its communication libraries print from C++ past every Python setting, some of it to stdout,
    where it would spoil JSON lines. File descriptors 1 and 2 point to a scratch file meanwhile, while
    `sys.stderr` keeps its real target, so that progress bars and logged errors still show.
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
    """Hold back what this process and its new children print while an engine starts; forward what comes later.

    An engine in processes of its own inherits the file descriptors that it starts with. What its libraries print
    meanwhile is chatter; what it prints afterwards, such as the traceback of a crash, goes to stderr.
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
    """Read lines to the end of a pipe; those that come once the engine has started go to stderr."""
    with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if started.is_set() and line.strip() and sys.stderr is not None:
                sys.stderr.write(line)
                sys.stderr.flush()


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
        os.dup2(target, descriptor)
        yield
    finally:
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
    """Restore what an engine in this process changes when it starts.

    It seeds the random states of Python, NumPy and torch again, and torch.distributed replaces `sys.excepthook`
    by one that writes a rank before every line.
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
