"""Settings of a run: fingerprints, records on disk, and differences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragalign.errors import ConfigError, DataError

_SHOWN = 3
_MISSING = object()


def fingerprint(value: Any) -> str:
    """A hash of a JSON value, 16 hex digits, independent of the order of keys; 0.0 equals 0."""
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings after a round trip through JSON: tuples become lists, keys become text."""
    value: dict[str, Any] = json.loads(json.dumps(settings))
    return value


def read_record(path: Path) -> dict[str, Any] | None:
    """Read the settings in a record; None if there is none.

    Raises:
        DataError: the record cannot be read, or is damaged.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{path} is damaged, so the settings of the run are unknown; choose another output")
    return value


def require_same(present: Mapping[str, Any], wanted: Mapping[str, Any], output: Path) -> None:
    """Compare the settings of an output with the current ones.

    Raises:
        ConfigError: they differ; the message lists the differences.
    """
    if found := differences(present, wanted):
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ConfigError(
            f"{output} was made with other settings: {'; '.join(found[:_SHOWN])}{more}. "
            "Choose another output, or use the same settings"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """The differences between two settings as sentences, one per value."""
    found = []
    for key in dict.fromkeys((*old, *new)):
        name = f"{where}{key}"
        before, after = old.get(key, _MISSING), new.get(key, _MISSING)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{name}.")
        elif after is _MISSING:
            found.append(f"{name} was {_brief(before)} and is not set now")
        elif before is _MISSING:
            found.append(f"{name} was not set and is {_brief(after)}")
        elif fingerprint(before) != fingerprint(after):
            found.append(f"{name} was {_brief(before)} and is {_brief(after)}")
    return found


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
