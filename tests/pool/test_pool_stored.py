"""A pool on disk: texts by position and id, what is kept of them, and damaged files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.errors import DataError, IndexFormatError
from ragalign.pool import Pool, stored
from ragalign.pool.stored import BATCH_ROWS, StoredPool, id_numbers, sort_ids, writing_texts
from ragalign.types import Demonstration

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def store(folder: Path, pool: Pool, cuts: list[int]) -> StoredPool:
    """The pool, written in parts that end at these positions."""
    with writing_texts(folder / "pool.arrow") as write:
        for start, end in pairwise([0, *cuts, len(pool)]):
            write(pool.table.slice(start, end - start))
    (folder / "ids.bin").write_bytes(id_numbers(pool.ids).tobytes())
    sort_ids(folder / "ids.bin")
    return StoredPool(folder / "pool.arrow", folder / "ids.bin", pool.fingerprint)


def long_pool(n: int, characters: int = 1_500) -> Pool:
    draw = np.random.default_rng(0)
    return Pool.from_demonstrations(
        Demonstration(f"Question {row}?", draw.bytes(characters // 2).hex(), metadata={"row": row}) for row in range(n)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(TEXTS, TEXTS, TEXTS, st.none() | TEXTS), max_size=9, unique_by=lambda row: row[:2]),
    st.integers(1, 150),
    st.data(),
)
def test_it_gives_what_was_written(rows: list[tuple[str, str, str, str | None]], n: int, data: st.DataObject) -> None:
    numbered = [Demonstration(f"Question {n}?", "Yes.") for n in range(n)]
    pool = Pool.from_demonstrations([Demonstration(a, b, source=c, source_id=d) for a, b, c, d in rows] + numbered)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(pool)), max_size=4)))
    with TemporaryDirectory() as name:
        kept = store(Path(name), pool, cuts)
        assert len(kept) == len(pool)
        assert list(kept) == [kept[position] for position in range(len(kept))] == list(pool)
        assert [kept.position(id_) for id_ in pool.ids] == list(range(len(pool)))
        assert {len(part) for part in list(kept.parts())[:-1]} <= {BATCH_ROWS}


def test_a_text_costs_a_small_batch_and_memory_is_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = long_pool(2_000)
    kept = store(tmp_path, pool, [])
    assert sum(batch.nbytes for batch in (kept._read(0), kept._read(1))) < 250_000
    monkeypatch.setattr(stored, "_KEPT_BYTES", 500_000)
    for position in np.random.default_rng(1).permutation(len(pool)).tolist():
        assert kept[position] == pool[position]
        assert kept._kept_bytes == sum(batch.nbytes for batch in kept._kept.values()) <= 500_000
    assert len(kept._kept) == 4
    before = list(kept._kept)
    kept[before[0] * BATCH_ROWS]
    assert list(kept._kept) == [*before[1:], before[0]]
    monkeypatch.setattr(stored, "_KEPT_BYTES", 1_000)
    assert kept[0] == pool[0]
    assert not kept._kept


def test_the_footer_is_small(tmp_path: Path) -> None:
    """100 million rows must not need hundreds of megabytes to open."""
    sizes = []
    for n in (64 * 100, 64 * 200):
        store(tmp_path, long_pool(n, 8), [])
        sizes.append(int.from_bytes((tmp_path / "pool.arrow").read_bytes()[-10:-6], "little"))
    assert (sizes[1] - sizes[0]) / (64 * 100) < 0.5


def test_damage_is_one_line(tmp_path: Path) -> None:
    pool = long_pool(3 * BATCH_ROWS + 5)
    store(tmp_path, pool, [])
    path = tmp_path / "pool.arrow"
    content = path.read_bytes()
    texts = [(one.instruction, one.response) for one in pool]
    draw, n_unopened, messages = np.random.default_rng(0), 0, []
    for _ in range(150):
        changed = bytearray(content)
        changed[int(draw.integers(8, len(content)))] ^= int(draw.integers(1, 256))
        path.write_bytes(changed)
        try:
            kept = StoredPool(path, tmp_path / "ids.bin", pool.fingerprint)
            found = [kept[position] for position in range(len(pool))]
        except (OSError, ValueError):
            n_unopened += 1
        except IndexFormatError as error:
            messages.append(str(error))
        else:
            # It was in padding, or in what has no hash.
            assert [(one.instruction, one.response) for one in found] == texts
    assert len(messages) > 100 > n_unopened
    assert all(one.startswith(f"{path} is damaged: ") and "\n" not in one for one in messages)
    for wrong in (b"", content[:-100], content[: len(content) // 2]):
        path.write_bytes(wrong)
        with pytest.raises((OSError, ValueError)):
            StoredPool(path, tmp_path / "ids.bin", pool.fingerprint)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    store(tmp_path, long_pool(300), [])
    (tmp_path / "other").mkdir()
    store(tmp_path / "other", long_pool(200), [])
    with pytest.raises(ValueError, match="does not hold the texts of the 200 ids"):
        StoredPool(tmp_path / "pool.arrow", tmp_path / "other" / "ids.bin", "")
    with pa.OSFile(str(tmp_path / "pool.arrow"), "wb") as file, pa.ipc.new_file(file, pa.schema({"a": pa.int8()})):
        pass
    with pytest.raises(ValueError, match="does not hold the texts"):
        StoredPool(tmp_path / "pool.arrow", tmp_path / "ids.bin", "")


def test_repetitions_are_found_at_their_first_place(tmp_path: Path) -> None:
    pool = long_pool(70)
    with writing_texts(tmp_path / "pool.arrow") as write:
        write(pool.table)
        write(pool.table)
    (tmp_path / "ids.bin").write_bytes(id_numbers(pool.ids * 2).tobytes())
    sort_ids(tmp_path / "ids.bin")
    kept = StoredPool(tmp_path / "pool.arrow", tmp_path / "ids.bin", "")
    assert len(kept) == 140
    assert kept[69] == kept[139] == pool[69]
    assert [kept.position(id_) for id_ in pool.ids] == list(range(70))
    for wrong in ("0" * 16, "f" * 16, "no id", "", "é" * 16, "A" * 16):
        with pytest.raises(DataError, match="no demonstration with the id"):
            kept.get(wrong)
    for wrong in (-1, 140):
        with pytest.raises(IndexError):
            kept[wrong]
