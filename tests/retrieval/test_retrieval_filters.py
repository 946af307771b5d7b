from __future__ import annotations

from typing import Any

import pytest

from ragalign.errors import ConfigError
from ragalign.pool import Pool
from ragalign.retrieval.filters import Filters
from ragalign.types import Demonstration

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("a.jsonl", {"category": "maths", "year": 2020, "safe": True, "tags": ["x", "y"]}),
    ("a.jsonl", {"category": "code", "year": 2021.0, "safe": False}),
    ("b.jsonl", {"category": "maths", "year": "2020", "note": None}),
    ("b.jsonl", {}),
    ("c.jsonl", {"category": "1", "year": 1, "safe": True, "source": "inner"}),
]


@pytest.fixture(scope="module")
def filters() -> Filters:
    return Filters(
        Pool.from_demonstrations(
            Demonstration(f"q{row}", "r", source=source, metadata=metadata)
            for row, (source, metadata) in enumerate(ROWS)
        )
    )


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"category": "maths"}, [0, 2]),
        ({"category": ["maths", "code"]}, [0, 1, 2]),
        ({"category": {"code", "nothing"}}, [1]),
        ({"category": []}, []),
        ({"category": "nothing"}, []),
        ({"source": "b.jsonl"}, [2, 3]),
        ({"source": ("a.jsonl", "c.jsonl")}, [0, 1, 4]),
        ({"source": "inner"}, []),
        ({"category": "maths", "source": "b.jsonl"}, [2]),
        ({"year": 2020}, [0]),
        ({"year": 2020.0}, [0]),
        ({"year": 2021}, [1]),
        ({"year": "2020"}, [2]),
        ({"year": [2020, "2020"]}, [0, 2]),
        ({"year": True}, []),
        ({"safe": True}, [0, 4]),
        ({"safe": 1}, []),
        ({"safe": False}, [1]),
        ({"note": None}, [2]),
        ({"tags": [["x", "y"]]}, [0]),
        ({"tags": "x"}, []),
    ],
)
def test_conditions(filters: Filters, where: dict[str, Any], rows: list[int]) -> None:
    assert filters.mask(where).nonzero()[0].tolist() == rows


def test_unknown_field_lists_the_known(filters: Filters) -> None:
    with pytest.raises(ConfigError, match=r"'categry'.*category, note, safe, source, tags, year"):
        filters.mask({"categry": "maths"})


def test_value_that_json_cannot_hold(filters: Filters) -> None:
    with pytest.raises(ConfigError, match="'year' cannot be compared with a value of type object"):
        filters.mask({"year": object()})


def test_empty_pool_has_nothing_to_filter() -> None:
    assert Filters(Pool.from_demonstrations([])).mask({"category": "maths"}).tolist() == []
