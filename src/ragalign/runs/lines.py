"""The files of a run that can be gone on with: its settings, and lines added one finished piece of work at a time."""

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
    # Bytes: text would be split at Unicode's other line ends too, which answers may hold.
    for number, line in enumerate(whole.splitlines(), 1):
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


def claim(path: Path, settings: Mapping[str, Any], *, foreign: str | None = None) -> None:
    """Write down with which settings a folder's work is done, or compare them with what is written.

    Args:
        path: the file of the settings; its folder is made if missing.
        settings: what JSON can hold.
        foreign: a glob: where there are no settings yet, nothing in the folder may match.

    Raises:
        ConfigError: the folder holds work with other settings.
        DataError: it holds something else, or the file is damaged.
    """
    folder = path.parent
    wanted = json.loads(json.dumps(settings))
    if not path.exists():
        if foreign is not None and any(folder.glob(foreign)):
            raise DataError(f"{folder} holds other things but no {path.name} to go on with; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
        return
    try:
        present = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        present = None
    if not isinstance(present, dict):
        raise DataError(f"{path} is damaged; choose another folder")
    if differences := _differences(present, wanted):
        raise ConfigError(
            f"{folder} was made with other settings: {'; '.join(differences[:3])}"
            + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
            + ". Choose another folder, or repeat the settings"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """What differs between two settings, in words."""
    found = []
    for key in dict.fromkeys((*old, *new)):
        name = f"{where}{key}"
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += _differences(one, other, f"{name}.")
        elif key not in new:
            found.append(f"{name} was there and is not now")
        elif key not in old:
            found.append(f"{name} was not there and is now")
        elif one != other:
            found.append(f"{name} was {_brief(one)} and is {_brief(other)}")
    return found


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
