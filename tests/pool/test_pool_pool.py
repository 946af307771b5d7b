from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.errors import ConfigError, DataError
from ragalign.pool import Pool
from ragalign.pool.table import SCHEMA
from ragalign.types import Demonstration, content_id

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(characters, min_size=1).filter(lambda text: not text.isspace())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
demonstrations = st.builds(
    Demonstration,
    instruction=texts,
    response=texts,
    source=st.text(characters, max_size=5),
    source_id=st.none() | st.text(characters, max_size=5),
    metadata=st.dictionaries(st.text(), json_values, max_size=3),
)


def small(n: int = 4) -> Pool:
    return Pool.from_demonstrations(Demonstration(f"q{i}", f"a{i}", "test", str(i), {"i": i}) for i in range(n))


@settings(deadline=None)
@given(st.lists(demonstrations))
def test_a_pool_is_the_sequence_of_its_demonstrations(given_demonstrations: list[Demonstration]) -> None:
    pool = Pool.from_demonstrations(given_demonstrations)
    firsts: dict[str, Demonstration] = {}
    for demo in given_demonstrations:
        firsts.setdefault(demo.id, demo)
    expected = list(firsts.values())
    assert list(pool) == expected
    assert [pool[i] for i in range(len(pool))] == expected
    assert pool.ids == [demo.id for demo in expected]
    assert pool.instructions == [demo.instruction for demo in expected]
    assert pool.responses == [demo.response for demo in expected]
    assert [pool.position(demo.id) for demo in expected] == list(range(len(expected)))
    assert all(pool.get(demo.id) == demo and demo in pool for demo in expected)


@settings(deadline=None)
@given(st.lists(demonstrations), st.sampled_from([".parquet", ".jsonl"]))
def test_saving_and_loading_gives_an_equal_pool(
    tmp_path_factory: Any, given_demonstrations: list[Demonstration], extension: str
) -> None:
    pool = Pool.from_demonstrations(given_demonstrations)
    path = tmp_path_factory.mktemp("pool") / f"pool{extension}"
    pool.save(path)
    if not len(pool) and extension == ".jsonl":
        with pytest.raises(DataError, match="the file is empty"):
            Pool.load(path)
        return
    loaded = Pool.load(path)
    assert loaded == pool
    assert list(loaded) == list(pool)
    assert loaded.fingerprint == pool.fingerprint
    assert loaded.table.schema.equals(SCHEMA, check_metadata=True)


def test_saved_pools_of_both_kinds_join(tmp_path: Path) -> None:
    first, second = small(3), small(5)
    first.save(tmp_path / "a.parquet")
    second.save(tmp_path / "b.jsonl")
    pool = Pool.load([tmp_path / "a.parquet", tmp_path / "b.jsonl"])
    assert pool == second == first.union(second)
    assert [file.n_duplicates for file in pool.report.files] == [0, 3]


def test_saved_jsonl_is_plain_json_lines(tmp_path: Path) -> None:
    Pool.from_demonstrations([Demonstration("Wie geht’s?", "Gut.", "f", None, {"k": ["é"]})]).save(tmp_path / "p.jsonl")
    assert (tmp_path / "p.jsonl").read_text(encoding="utf-8") == (
        '{"id": "' + content_id("Wie geht’s?", "Gut.") + '", "instruction": "Wie geht’s?", "response": "Gut.", '
        '"source": "f", "source_id": null, "metadata": {"k": ["é"]}}\n'
    )


def test_edited_rows_get_the_id_of_their_content(tmp_path: Path) -> None:
    small(1).save(tmp_path / "p.jsonl")
    row = json.loads((tmp_path / "p.jsonl").read_text())
    (tmp_path / "p.jsonl").write_text(json.dumps({**row, "response": "better"}))
    assert Pool.load(tmp_path / "p.jsonl").ids == [content_id("q0", "better")]


def test_saving_replaces_only_what_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.jsonl"
    small(2).save(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(DataError, match=r"p.jsonl: cannot be written \(No space left on device\)"):
        small(3).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.jsonl"]


def test_saving_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown extension '.csv' for a pool; use .parquet or .jsonl"):
        small().save(tmp_path / "p.csv")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written \(File exists\); check the folder"):
        small().save(tmp_path / "file" / "p.jsonl")


def test_saved_files_have_the_usual_permissions(tmp_path: Path) -> None:
    small().save(tmp_path / "p.parquet")
    (tmp_path / "other").touch()
    assert (tmp_path / "p.parquet").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_damaged_saved_pool_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pool = small(200)
    pool.save(path)
    content = path.read_bytes()
    path.write_bytes(content[:100] + content[200:])
    with pytest.raises(DataError, match=r"p.parquet: not readable as Parquet \("):
        Pool.load(path)
    marked = pool.table.replace_schema_metadata({b"ragalign_pool": b"1"})
    pq.write_table(marked.drop_columns("response"), path)
    with pytest.raises(DataError, match="marked as a saved pool, but its columns are not those of a pool"):
        Pool.load(path)


def test_fingerprint_is_of_the_ids_in_order() -> None:
    pool = small(3)
    assert pool.fingerprint == hashlib.sha256("".join(f"{key}\n" for key in pool.ids).encode()).hexdigest()
    other_source = Pool.from_demonstrations(Demonstration(d.instruction, d.response) for d in pool)
    assert other_source.fingerprint == pool.fingerprint
    assert other_source != pool
    assert pool.take([1, 0, 2]).fingerprint != pool.fingerprint
    assert len({pool, small(3), pool.take([1, 0, 2])}) == 2


def test_table_is_as_documented() -> None:
    assert small().table.schema.names == ["id", "instruction", "response", "source", "source_id", "metadata"]
    assert small().table.schema.equals(SCHEMA)
    assert Pool.from_demonstrations([]).table.schema.equals(SCHEMA)


def test_indexing_from_the_end_by_slice_and_beyond() -> None:
    pool = small(4)
    assert pool[-1] == pool[3]
    assert list(pool[1:3]) == [pool[1], pool[2]]
    assert list(pool[::-1]) == list(reversed(pool))
    for position in (4, -5):
        with pytest.raises(IndexError, match=f"position {position} is outside a pool of 4"):
            pool[position]


def test_take_without_union() -> None:
    pool = small(4)
    assert list(pool.take([3, 1])) == [pool[3], pool[1]]
    assert list(pool.without([pool[0].id, pool[2].id])) == [pool[1], pool[3]]
    assert pool.without([]) == pool
    assert pool.take([]).union(pool) == pool
    assert list(pool.take([2]).union(pool)) == [pool[2], pool[0], pool[1], pool[3]]
    with pytest.raises(IndexError, match="position 4 is outside"):
        pool.take([4])
    with pytest.raises(IndexError, match="position -1 is outside"):
        pool.take([-1])
    with pytest.raises(DataError, match="occurs twice"):
        pool.take([1, 1])
    for positions in ([0.5], np.array([True, False, True, False])):
        with pytest.raises(ConfigError, match="positions must be whole numbers, not"):
            pool.take(positions)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["", "0" * 16, "é", "x" * 40, "f" * 16 + "\0"])
def test_unknown_ids_are_named(key: str) -> None:
    pool = small(4)
    for lookup in (pool.position, pool.get, lambda key: pool.without([key])):
        with pytest.raises(DataError, match="no demonstration with the id"):
            lookup(key)
    with pytest.raises(DataError):
        Pool.from_demonstrations([]).get(key)


def test_contains_asks_for_the_content() -> None:
    pool = small(2)
    assert Demonstration("q1", "a1", "elsewhere") in pool
    assert Demonstration("q1", "a0") not in pool
    assert "q1" not in pool


@pytest.mark.parametrize(
    ("demonstration", "reason"),
    [
        (Demonstration("q", " "), "demonstration 2: the response is empty; correct or remove it"),
        (Demonstration("q\0", "a"), "demonstration 2: the instruction contains a NUL"),
        (Demonstration("q", "\ud800"), "demonstration 2: the response contains a lone surrogate"),
        (Demonstration("q", "a", source="\ud800"), "demonstration 2: the id or source contains a lone surrogate"),
        (Demonstration("q", "a", metadata={"x": {1}}), "demonstration 2: the metadata cannot be written as JSON"),
    ],
)
def test_demonstrations_that_cannot_be_in_a_pool(demonstration: Demonstration, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        Pool.from_demonstrations([Demonstration("first", "a"), demonstration])


def test_repr_says_what_it_is() -> None:
    assert repr(small(3)) == f"Pool(3 demonstrations, fingerprint {small(3).fingerprint[:12]})"
