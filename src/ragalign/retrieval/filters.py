"""Metadata filters: ``where`` mappings to boolean masks over a pool."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError
from ragalign.pool import Pool

_MISSING = -1


@dataclass(frozen=True, slots=True)
class _Column:
    """One field of all demonstrations: a code per demonstration, and the code of each distinct value."""

    codes: NDArray[np.int32]
    code_of: Mapping[Hashable, int]


class Filters:
    """Turns ``where`` mappings into masks; each field is read from the pool once."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._columns: dict[str, _Column] = {}

    def mask(self, where: Mapping[str, Any]) -> NDArray[np.bool_]:
        """The demonstrations that meet all conditions, as a mask bool [n].

        A condition compares ``source`` or the metadata field of that name with the value, or with any value of a list,
        tuple or set. Numbers are compared as numbers and never equal text.

        Raises:
            ConfigError: no demonstration has such a field, or a value is not a JSON value.
        """
        mask = np.ones(len(self._pool), dtype=np.bool_)
        for field, wanted in where.items():
            column = self._column(field)
            values = wanted if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
            codes = [column.code_of.get(_key(value, field), None) for value in values]
            mask &= np.isin(column.codes, [code for code in codes if code is not None])
        return mask

    def _column(self, field: str) -> _Column:
        if field not in self._columns:
            self._columns[field] = self._read(field)
        return self._columns[field]

    def _read(self, field: str) -> _Column:
        code_of: dict[Hashable, int] = {}
        if field == "source":
            values = self._pool.table["source"].to_pylist()
            codes = [code_of.setdefault(_key(value, field), len(code_of)) for value in values]
        else:
            rows = self._metadata()
            codes = [
                code_of.setdefault(_key(row[field], field), len(code_of)) if field in row else _MISSING for row in rows
            ]
            if rows and not code_of:
                known = sorted({"source"}.union(*rows))
                raise ConfigError(f"where: no demonstration has the field {field!r}; known fields: {', '.join(known)}")
        return _Column(np.array(codes, dtype=np.int32), code_of)

    def _metadata(self) -> list[dict[str, Any]]:
        return [json.loads(text) if text else {} for text in self._pool.table["metadata"].to_pylist()]


def _key(value: object, field: str) -> Hashable:
    """A hashable key for a JSON value; keys are equal exactly if the values are."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return (type(value), value)
    if isinstance(value, int | float):
        return (float, value)
    try:
        return ("json", json.dumps(value, sort_keys=True))
    except TypeError:
        raise ConfigError(
            f"where: {field!r} cannot be compared with a value of type {type(value).__name__}; "
            "use text, numbers, true, false, null or a list of them"
        ) from None
