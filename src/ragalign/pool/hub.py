"""Reads Hugging Face datasets by name; the one place that imports `datasets`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ragalign._optional import require
from ragalign.errors import DataError
from ragalign.pool.rows import Rows

_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?::(?P<first>[\w.-]+))?(?::(?P<second>[\w.-]+))?")
_BATCH_ROWS = 1000
_PROBE_SECONDS = 10


def looks_like_dataset(text: str, extensions: tuple[str, ...]) -> bool:
    """Whether ``text`` can be the name of a dataset; a name with a file's extension is a file that is missing."""
    return _NAME.fullmatch(text) is not None and not text.lower().endswith(extensions)


def read_dataset(text: str) -> Rows:
    """The rows of a dataset named ``name``, ``name:split`` or ``name:config:split``.

    Without a split it is ``train``, or the only one there is. Where the hub is switched off (``HF_HUB_OFFLINE=1``)
    a cached copy is read.

    Raises:
        DataError: the dataset cannot be loaded: no such name, configuration or split, or no way to the hub.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise DataError(f"{text}: not the name of a dataset; write name, name:split or name:config:split")
    name, first, second = match["name"], match["first"], match["second"]
    config, split = (first, second) if second else (None, first)
    datasets = require("datasets", "a dataset name")
    _probe_hub(text, name)
    try:
        with _quiet_unless_terminal(datasets):
            loaded = datasets.load_dataset(name, config, split=split)
    # `datasets` raises its own errors, those of the hub's client, and plain ValueErrors: all mean the same here.
    except Exception as error:
        raise DataError(
            f"{text}: there is no such file, and no dataset of this name could be loaded ({_first_line(error)}); "
            "check its name, configuration and split, or give a file"
        ) from None
    return _rows(loaded if split else _choose_split(text, loaded))


def fetch_file(repository: str, file: str) -> Path:
    """A single file of a dataset repository, for datasets that only a script of their own could load.

    Raises:
        DataError: it is not in the local hub cache, and cannot be had from the hub.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", etag_timeout=_PROBE_SECONDS))
    except Exception as error:
        raise DataError(
            f"{repository}: the file {file} cannot be had from the hub ({_first_line(error)}); give a local copy"
        ) from None


def _probe_hub(text: str, name: str) -> None:
    """Ask the hub once, since `datasets` would try for half a minute to reach it."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(name, timeout=_PROBE_SECONDS)
    except (HfHubHTTPError, ValueError):
        return  # the hub is there, and `datasets` says best what is wrong with the name
    except Exception as error:
        raise DataError(
            f"{text}: there is no such file, and the hub cannot be reached to look for a dataset of this name "
            f"({_first_line(error)}); check the name and the network, or set HF_HUB_OFFLINE=1 to use a cached copy"
        ) from None


@contextmanager
def _quiet_unless_terminal(datasets: Any) -> Iterator[None]:
    hide = not sys.stderr.isatty() and not datasets.utils.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


def _choose_split(text: str, loaded: Any) -> Any:
    if "train" in loaded:
        return loaded["train"]
    if len(loaded) == 1:
        return next(iter(loaded.values()))
    splits = list(loaded)
    raise DataError(f"{text}: the dataset has the splits {', '.join(splits)}; name one, as in {text}:{splits[0]}")


def _rows(dataset: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in dataset.iter(batch_size=_BATCH_ROWS):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield number, dict(zip(batch, values, strict=True))


def _first_line(error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
