"""Reads Hugging Face datasets by name; the one place that imports `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ragalign._optional import require
from ragalign.errors import DataError
from ragalign.pool.readers import Rows

_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?::(?P<first>[\w.-]+))?(?::(?P<second>[\w.-]+))?")
_BATCH_ROWS = 1000


def looks_like_dataset(text: str, extensions: tuple[str, ...]) -> bool:
    """Whether ``text`` can be the name of a dataset; a name with a file's extension is a file that is missing."""
    return _NAME.fullmatch(text) is not None and not text.lower().endswith(extensions)


def read_dataset(text: str) -> Rows:
    """The rows of a dataset named ``name``, ``name:split`` or ``name:config:split``.

    Without a split it is ``train``, or the only one there is.

    Raises:
        DataError: the dataset cannot be loaded: no such name, configuration or split, or no way to the hub.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise DataError(f"{text}: not the name of a dataset; write name, name:split or name:config:split")
    name, first, second = match["name"], match["first"], match["second"]
    config, split = (first, second) if second else (None, first)
    datasets = require("datasets", "a dataset name")
    try:
        # `datasets` raises its own errors, those of the hub client, and plain ValueErrors: any of them means the same.
        loaded = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"{text}: there is no such file, and no dataset of this name could be loaded "
            f"({type(error).__name__}: {reason}); check the name and the network, or give a file"
        ) from None
    return _rows(loaded if split else _choose_split(text, loaded))


def _choose_split(text: str, loaded: Any) -> Any:
    if "train" in loaded:
        return loaded["train"]
    if len(loaded) == 1:
        return next(iter(loaded.values()))
    raise DataError(
        f"{text}: the dataset has the splits {', '.join(loaded)}; name one, as in {text}:{next(iter(loaded))}"
    )


def _rows(dataset: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in dataset.iter(batch_size=_BATCH_ROWS):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield number, dict(zip(batch, values, strict=True))
