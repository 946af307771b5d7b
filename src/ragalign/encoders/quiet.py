"""Silencing loading bars and advice of the libraries underneath."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ragalign._bars import hidden_bars

_LOGGERS = ("sentence_transformers", "transformers", "huggingface_hub")


@contextmanager
def quiet() -> Iterator[None]:
    """Mute warnings, log lines below errors and loading bars inside a block.

    Download bars stay if stderr is a terminal, since downloads take long.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            hidden_bars("transformers"),
            hidden_bars("huggingface_hub", on_terminals=False),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
