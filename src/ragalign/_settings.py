"""TOML tables as frozen dataclasses, with errors that name the file, the table and the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from ragalign._parsing import parse_toml
from ragalign.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError

T = TypeVar("T")

# pydantic's errors in the words of TOML.
_EXPECTED = {
    "missing": "is missing",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "dataclass_type": "must be a table",
}


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
        raise ConfigError(f"{where}: {_first(error)}") from None


def from_flat_table(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """As `from_table`, for dataclasses without nested ones; converts nothing, such as 1 to true or "1" to 1.

    Raises:
        ConfigError: as `from_table`.
    """
    from pydantic import TypeAdapter, ValidationError

    _check_keys(kind, table, where)
    hints = get_type_hints(kind)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    described: type[Any] = kind
    for each in fields(described):
        if each.name not in given and each.default is MISSING and each.default_factory is MISSING:
            raise ConfigError(f"{where}: {each.name} is missing")
    for key, value in given.items():
        try:
            TypeAdapter(hints[key]).validate_python(value, strict=True)
        except ValidationError as error:
            raise ConfigError(f"{where}: {_first(error, key)}") from None
    return kind(**given)


def _first(error: ValidationError, *place: str) -> str:
    """The first problem, in the words of TOML."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in (*place, *first["loc"]))
    problem = _EXPECTED.get(first["type"])
    if first["type"] == "literal_error":
        problem = f"must be {first['ctx']['expected']}, not {first['input']!r}"
    return f"{key} {problem}" if problem else f"{key}: {first['msg'].lower()}"


def _check_keys(kind: type[Any], table: Mapping[str, Any], where: str) -> None:
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind) if field.init]
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; known are {', '.join(known)}")
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            _check_keys(hints[key], value, f"{where}: [{key}]")
