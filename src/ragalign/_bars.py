"""Hiding the progress bars and advice of the libraries underneath, which would disturb a command's own output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeAlias

Library: TypeAlias = Literal["transformers", "datasets", "huggingface_hub"]


@contextmanager
def hidden_bars(*libraries: Library, on_terminals: bool = True) -> Iterator[None]:
    """Hide the progress bars of these libraries inside a block.

    Args:
        libraries: whose bars.
        on_terminals: whether to hide them if stderr is a terminal, too.
    """
    with ExitStack() as stack:
        if on_terminals or not sys.stderr.isatty():
            for library in libraries:
                are_shown, hide, show = _switches(library)
                if are_shown():
                    stack.callback(show)
                    hide()
        yield


@contextmanager
def transformers_errors_only() -> Iterator[None]:
    """Hide the warnings and advice that transformers logs inside a block."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _switches(library: Library) -> tuple[Callable[[], bool], Callable[[], Any], Callable[[], Any]]:
    """Functions that tell whether a library shows bars, hide them, and show them."""
    if library == "transformers":
        from transformers.utils import logging

        return logging.is_progress_bar_enabled, logging.disable_progress_bar, logging.enable_progress_bar
    if library == "datasets":
        from datasets import utils
    else:
        from huggingface_hub import utils
    switches: Any = utils  # their documented names are left out of the hub's __all__
    return (
        lambda: not switches.are_progress_bars_disabled(),
        switches.disable_progress_bars,
        switches.enable_progress_bars,
    )
