"""Reading Hugging Face datasets by name. The only module that imports `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragalign._bars import hidden_bars
from ragalign._optional import require
from ragalign.errors import DataError
from ragalign.pool.rows import Rows

_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?::(?P<first>[\w.-]+))?(?::(?P<second>[\w.-]+))?")
_BATCH_ROWS = 1000
_PROBE_SECONDS = 10


def looks_like_dataset(text: str, extensions: tuple[str, ...]) -> bool:
    """Whether ``text`` can be a dataset name. A name with a file extension is a missing file instead."""
    return _NAME.fullmatch(text) is not None and not text.lower().endswith(extensions)


def read_dataset(text: str) -> Rows:
    """Read the rows of a dataset named ``name``, ``name:split`` or ``name:config:split``.

    The default split is ``train``, or the only one there is. With ``HF_HUB_OFFLINE=1`` a cached copy is read.

    Raises:
        DataError: no such dataset, configuration or split, or the Hub cannot be reached.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise DataError(f"{text}: not a dataset name; write name, name:split or name:config:split")
    name, first, second = match["name"], match["first"], match["second"]
    config, split = (first, second) if second else (None, first)
    datasets = require("datasets", "a dataset name")
    _probe_hub(text, name)
    try:
        with hidden_bars("datasets", on_terminals=False):
            loaded = datasets.load_dataset(name, config, split=split)
    # `datasets` raises its own errors, those of the Hub client, and plain ValueErrors; all mean the same here.
    except Exception as error:
        raise DataError(
            f"{text}: no such file, and no dataset of this name could be loaded ({_first_line(error)}); "
            "check its name, configuration and split, or name a file"
        ) from None
    return _rows(loaded if split else _choose_split(text, loaded))


def fetch_file(repository: str, file: str) -> Path:
    """Fetch a single file of a dataset repository, for datasets that only their own script can load.

    Raises:
        DataError: the file is neither in the local Hub cache nor can it be downloaded.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", etag_timeout=_PROBE_SECONDS))
    except Exception as error:
        raise DataError(
            f"{repository}: cannot download the file {file} from the Hub ({_first_line(error)}); name a local copy"
        ) from None


def _probe_hub(text: str, name: str) -> None:
    """Ask the Hub once, since `datasets` would retry for half a minute."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(name, timeout=_PROBE_SECONDS)
    except (HfHubHTTPError, ValueError):
        return  # the Hub answers, and `datasets` gives the better message about the name
    except Exception as error:
        raise DataError(
            f"{text}: no such file, and the Hub cannot be reached to look for a dataset of this name "
            f"({_first_line(error)}); check the name and the network, or set HF_HUB_OFFLINE=1 to use a cached copy"
        ) from None


def _choose_split(text: str, loaded: Any) -> Any:
    if "train" in loaded:
        return loaded["train"]
    if len(loaded) == 1:
        return next(iter(loaded.values()))
    splits = list(loaded)
    raise DataError(f"{text}: the dataset has the splits {', '.join(splits)}; choose one, as in {text}:{splits[0]}")


def _rows(dataset: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in dataset.iter(batch_size=_BATCH_ROWS):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield number, dict(zip(batch, values, strict=True))


def _first_line(error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
