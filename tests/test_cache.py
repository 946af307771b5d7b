"""The one cache: whatever happens to its file, no traceback, no wrong value, and nothing is thrown away."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.cache import Cache, CacheError

ENTRIES = {f"key {n}".encode(): f"value {n} ".encode() * 40 for n in range(150)}
KEYS = list(ENTRIES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "c.sqlite"
    Cache(path, "test cache").put(ENTRIES)
    return path


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@given(st.dictionaries(st.binary(max_size=9), st.binary(max_size=50)), st.lists(st.binary(max_size=9)))
def test_it_is_a_dictionary(entries: dict[bytes, bytes], others: list[bytes]) -> None:
    with Cache(None, "test cache") as cache:
        cache.put(entries)
        assert cache.get([*entries, *others]) == entries
        assert len(cache) == len(entries)
        cache.put(dict.fromkeys(entries, b"new"))
        assert cache.get(list(entries)) == dict.fromkeys(entries, b"new")


def test_many_keys_are_read_at_once(path: Path) -> None:
    cache = Cache(path, "test cache")
    many = {str(n).encode(): b"x" for n in range(5000)}
    cache.put(many)
    assert cache.get([*many, *KEYS, b"none"]) == many | ENTRIES


def test_damaged_rows_are_missing_and_reported_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    connection = sqlite3.connect(path)
    with connection:
        for number, change in enumerate((
            "value = x'00'", "value = zeroblob(360)", "value = 'text'", "value = 7", "checksum = checksum + 1",
            "checksum = 'x'", "checksum = -1",
        )):  # fmt: skip
            connection.execute(f"UPDATE ragalign_cache SET {change} WHERE key = ?", (KEYS[number],))
        # A row under another's key.
        connection.execute("DELETE FROM ragalign_cache WHERE key = ?", (KEYS[7],))
        connection.execute("UPDATE ragalign_cache SET key = ? WHERE key = ?", (KEYS[7], KEYS[8]))
    connection.close()
    cache = Cache(path, "test cache")
    for _ in range(2):
        assert cache.get(KEYS) == {key: ENTRIES[key] for key in KEYS[9:]}
    [message] = said(caplog)
    assert str(path) in message
    assert "damaged entries" in message
    cache.put({key: ENTRIES[key] for key in KEYS[:9]})
    assert cache.get(KEYS) == ENTRIES


@pytest.mark.parametrize("strict", [False, True])
def test_any_flipped_byte_gives_right_values_or_none(path: Path, strict: bool) -> None:
    content, chosen = path.read_bytes(), random.Random(0)
    # The header and the first page are where most harm can be done.
    places = [*range(100), *(chosen.randrange(100, 4096) for _ in range(60))]
    places += [chosen.randrange(len(content)) for _ in range(90)]
    for at in places:
        flipped = content[at] ^ (1 << chosen.randrange(8))
        path.write_bytes(content[:at] + bytes([flipped]) + content[at + 1 :])
        with Cache(path, "test cache", strict=strict) as cache:
            found = cache.get(KEYS)
            assert all(ENTRIES[key] == value for key, value in found.items()), at
            cache.put(ENTRIES)
            assert cache.get(KEYS) == ENTRIES, f"not mended after byte {at}"
        for other in path.parent.iterdir():
            other.unlink()


@pytest.mark.parametrize(
    "damage",
    ["empty", "short", "half", "zeros", "garbage", "garbage behind the magic", "a hole", "no table"],
)
def test_a_damaged_file_is_kept_and_begun_afresh(path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    content = path.read_bytes()
    damaged = {
        "empty": b"",
        "short": content[:50],
        "half": content[: len(content) // 2],
        "zeros": b"\0" * 8192,
        "garbage": random.Random(1).randbytes(9000),
        "garbage behind the magic": content[:16] + b"x" * 9000,
        "a hole": content[:16384] + random.Random(1).randbytes(8192) + content[24576:],
        "no table": content,
    }[damage]
    path.write_bytes(damaged)
    if damage == "no table":
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("ALTER TABLE ragalign_cache RENAME TO other")
        connection.close()
    for strict in (False, True):
        cache = Cache(path, "test cache", strict=strict)
        found = cache.get(KEYS)
        assert all(ENTRIES[key] == value for key, value in found.items())
        cache.put(ENTRIES)
        assert cache.get(KEYS) == ENTRIES
    if damage == "empty":  # a file that was just begun
        return
    if damage == "a hole":
        assert len(found) > 0, "what is around the hole is saved"
    [kept] = path.parent.glob("c.sqlite.damaged")
    assert damage == "no table" or kept.read_bytes()[: len(damaged)] == damaged
    assert any(str(path) in message and str(kept) in message for message in said(caplog))


def test_every_damaged_file_is_kept_under_a_name_of_its_own(path: Path) -> None:
    for number in range(3):
        path.write_bytes(b"\0" * 100 + bytes([number]) * 5000)
        Cache(path, "test cache").put(ENTRIES)
    names = sorted(each.name for each in path.parent.glob("*damaged*"))
    assert names == ["c.sqlite.damaged", "c.sqlite.damaged-2", "c.sqlite.damaged-3"]


def other_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()


def test_files_of_something_else_are_refused_where_they_may_be_meant(tmp_path: Path) -> None:
    text, database = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    text.write_text("not a database, but long enough to look at: " * 50)
    other_database(database)
    for path in (text, database, tmp_path):
        before = path.read_bytes() if path.is_file() else b""
        cache = Cache(path, "test cache", strict=True)
        uses: list[Callable[[], object]] = [partial(cache.get, KEYS), partial(cache.put, ENTRIES), cache.__enter__]
        for use in uses:
            with pytest.raises(CacheError, match=rf"the test cache .*{path.name} cannot be used: it is"):
                use()
        assert path.is_dir() or path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"notes.txt", "other.sqlite"}


def test_in_our_own_folders_they_are_moved_aside(tmp_path: Path) -> None:
    for name in ("text", "database"):
        path = tmp_path / name
        path.write_text("somebody's notes") if name == "text" else other_database(path)
        before = path.read_bytes()
        Cache(path, "test cache").put(ENTRIES)
        assert Cache(path, "test cache").get(KEYS) == ENTRIES
        assert (tmp_path / f"{name}.damaged").read_bytes() == before


@pytest.mark.parametrize("place", ["file/c.sqlite", "folder", "nul\0.sqlite"])
def test_what_cannot_be_used_is_said_once_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    cache = Cache(tmp_path / place, "test cache")
    for _ in range(2):
        cache.put(ENTRIES)
        assert cache.get(KEYS) == {}
        assert len(cache) == 0
    [message] = said(caplog)
    assert "cannot be used, continuing without it" in message
    with pytest.raises(CacheError, match="cannot be used"):
        Cache(tmp_path / place, "test cache", strict=True).put(ENTRIES)


def test_a_full_disk_is_said_once_and_left_out(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr("ragalign.cache.insert_rows", full)
    cache = Cache(path, "test cache")
    for _ in range(2):
        cache.put({b"new": b"x"})
    [message] = said(caplog)
    assert "disk is full" in message
    assert [each.name for each in path.parent.iterdir()] == ["c.sqlite"]
    assert Cache(path, "test cache").get(KEYS) == ENTRIES
    with pytest.raises(CacheError, match="disk is full"):
        Cache(path, "test cache", strict=True).put({b"new": b"x"})


def test_reading_only_changes_nothing(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    with Cache(path, "test cache", strict=True, read_only=True) as cache:
        assert cache.get(KEYS) == ENTRIES
        with pytest.raises(CacheError, match="read-only"):
            cache.put({b"new": b"x"})
    with Cache(tmp_path / "none.sqlite", "test cache", strict=True, read_only=True) as cache:
        assert cache.get(KEYS) == {}
    assert path.read_bytes() == before
    assert not (tmp_path / "none.sqlite").exists()


WRITER = """
import sys
from pathlib import Path
from ragalign.cache import Cache
path, start = Path(sys.argv[1]), int(sys.argv[2])
cache = Cache(path, "test cache")
for n in range(start, start + 40):
    entries = {f"{n}-{m}".encode(): str(n).encode() for m in range(20)}
    cache.put(entries)
    assert cache.get(list(entries)) == entries
"""


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_share_a_file(tmp_path: Path, damaged: bool) -> None:
    path = tmp_path / "c.sqlite"
    if damaged:  # all of them find it, and one of them replaces it
        path.write_bytes(b"\0" * 9000)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(start)], stderr=subprocess.PIPE, text=True)
        for start in (0, 0, 20)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=240)
        assert writer.returncode == 0, errors
        assert damaged or errors == ""
    expected = {f"{n}-{m}".encode(): str(n).encode() for n in range(60) for m in range(20)}
    assert Cache(path, "test cache").get(list(expected)) == expected
    assert len(list(tmp_path.glob("*.damaged*"))) == int(damaged)


def test_threads_begin_the_same_file(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def write(path: Path, name: str, start: threading.Barrier) -> None:
        start.wait()
        try:
            with Cache(path, "test cache", strict=True) as cache:
                for number in range(20):
                    cache.put({f"{name} {number}".encode(): b"x"})
        except Exception as error:
            failures.append(error)

    for repeat in range(10):
        path, start = tmp_path / f"{repeat}.sqlite", threading.Barrier(4)
        threads = [threading.Thread(target=write, args=(path, name, start)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(Cache(path, "test cache")) == 80
