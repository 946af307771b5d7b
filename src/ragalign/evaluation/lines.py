"""JSON Lines files that grow one finished piece of work at a time, so that an interrupted run loses nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragalign.errors import ConfigError, DataError


def read_finished(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that may not exist yet; a last line that was cut off is removed from it first.

    Raises:
        DataError: another line is no JSON object.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    rows = []
    for number, line in enumerate(whole.decode("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: no JSON object; remove the file to do its part again")
        rows.append(row)
    return rows


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row, at once and as a whole."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document; the file is complete or as before."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder the home of a run with these settings, or go on with the one that is there.

    Raises:
        ConfigError: the folder holds a run with other settings; the message names the first that differs.
    """
    path = folder / "run.json"
    wanted = json.loads(json.dumps(settings))
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds other things than a run to go on with; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
        return
    try:
        present = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        present = {}
    for key in wanted:
        if present.get(key) != wanted[key]:
            raise ConfigError(
                f"{folder} holds a run with {key} {present.get(key)!r}, not {wanted[key]!r}; choose another --out"
            )
