"""Silencing loading bars and advice of the libraries underneath."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("sentence_transformers", "transformers", "huggingface_hub")


@contextmanager
def quiet() -> Iterator[None]:
    """Mute warnings, log lines below errors and loading bars inside a block.

    Download bars stay if stderr is a terminal, since downloads take long.
    """
    # Documented names, but left out of the module's __all__.
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    had_bar = transformers_logging.is_progress_bar_enabled()
    had_downloads = not are_progress_bars_disabled() and not sys.stderr.isatty()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if had_downloads:
                disable_progress_bars()
            yield
    finally:
        if had_downloads:
            enable_progress_bars()
        if had_bar:
            transformers_logging.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
