"""TOML tables as frozen dataclasses, with errors that name the file, the table and the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ragalign._parsing import parse_toml
from ragalign.errors import ConfigError

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: the file cannot be read or is not valid TOML.
    """
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: {reason}") from None


def from_table(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from a TOML table; nested tables become the dataclasses of their fields.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type; `where` opens the message.
    """
    from pydantic import TypeAdapter, ValidationError

    _check_keys(kind, table, where)
    try:
        return TypeAdapter(kind).validate_python(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {key}: {first['msg'].lower()}") from None


def _check_keys(kind: type[Any], table: Mapping[str, Any], where: str) -> None:
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind) if field.init]
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; known are {', '.join(known)}")
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            _check_keys(hints[key], value, f"{where}: [{key}]")
