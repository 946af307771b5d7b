"""A score per answer, without a judge: exact match, or a user's Python function."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ragalign.errors import ConfigError

Record = Mapping[str, Any]
Scorer = Callable[[Record], float | None]


def make_scorer(text: str) -> Scorer:
    """``exact-match``, or ``path/to/file.py:function``.

    A record has ``id``, ``instruction``, ``response``, ``references`` (a list) and ``metadata``; a function of yours
    returns a number, or None where there is nothing to score.

    Raises:
        ConfigError: there is no such metric, file or function, or the file does not run.
    """
    if text == "exact-match":
        return exact_match
    path, colon, name = text.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise ConfigError(f"no metric {text!r}: use exact-match, or a function of yours as path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(f"ragalign_metric_{Path(path).stem}", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ConfigError(f"there is no file {path} with a metric")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path} does not run: {type(error).__name__}: {error}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{path} has no function {name!r}")

    def score(record: Record) -> float | None:
        try:
            value = function(record)
        except Exception as error:
            raise ConfigError(f"{text} failed on {record['id']}: {type(error).__name__}: {error}") from None
        if value is None:
            return None
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{text} gave no finite number on {record['id']}: {value!r}")
        return float(value)

    return score


def exact_match(record: Record) -> float | None:
    """1 if the response is one of the references, blanks at both ends aside, 0 if not, None without a reference."""
    references = record["references"]
    if not references:
        return None
    return float(record["response"].strip() in {reference.strip() for reference in references})
