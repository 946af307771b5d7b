"""The embedding cache: what it saves, and that nothing which happens to it can change a result."""

from __future__ import annotations

import hashlib
import logging
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ragalign.encoders import Encoder
from ragalign.encoders.cache import EmbeddingCache, _key, default_cache_folder

TEXTS = [f"What is {number} times {number}?" for number in range(40)]
DIMENSION = 8


def drawn(texts: list[str]) -> NDArray[np.float32]:
    """A vector for each text that nothing else gives."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) for text in texts]
    rows = [np.random.default_rng(seed).normal(size=DIMENSION) for seed in seeds]
    return np.array(rows, dtype=np.float32).reshape(len(texts), DIMENSION)


def read(cache: EmbeddingCache, prompt: str, texts: list[str]) -> tuple[NDArray[np.float32], list[int]]:
    vectors = np.full((len(texts), DIMENSION), np.nan, dtype=np.float32)
    return vectors, cache.read(prompt, texts, vectors)


@given(written=st.lists(st.text()), asked=st.lists(st.text()), prompt=st.sampled_from(["", "p: "]))
def test_what_was_written_comes_back_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, written: list[str], asked: list[str], prompt: str
) -> None:
    cache = EmbeddingCache(tmp_path_factory.mktemp("cache") / "c.sqlite", DIMENSION)
    cache.write(prompt, written, drawn(written))
    vectors, missing = read(cache, prompt, asked + written)
    assert missing == [position for position, text in enumerate(asked) if text not in set(written)]
    present = [position for position in range(len(vectors)) if position not in set(missing)]
    np.testing.assert_array_equal(vectors[present], drawn(asked + written)[present])
    assert read(cache, prompt + "?", written)[1] == list(range(len(written)))


def test_a_prompt_cannot_be_mistaken_for_text(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "c.sqlite", DIMENSION)
    cache.write("ab", ["c"], drawn(["x"]))
    assert read(cache, "a", ["bc"])[1] == [0]


def test_documents_are_encoded_once_and_queries_are_not_kept(
    minilm: Encoder, minilm_folder: Path, tmp_path: Path
) -> None:
    encoder = Encoder.load(minilm_folder, cache=tmp_path)
    first = encoder.encode(TEXTS[:10])
    np.testing.assert_allclose(first, minilm.encode(TEXTS[:10]), atol=2e-6)
    encoder.encode(TEXTS[:20], kind="query")
    [path] = tmp_path.glob("*.sqlite")
    assert path.stem == encoder.fingerprint
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM ragalign_cache").fetchone() == (10,)
    connection.close()
    # A marked vector shows where a result comes from.
    marked = np.full((1, 384), 0.5, dtype=np.float32)
    EmbeddingCache(path, 384).write("", [TEXTS[3]], marked)
    again = Encoder.load(minilm_folder, cache=tmp_path).encode(TEXTS[:12])
    np.testing.assert_array_equal(again[3], marked[0])
    np.testing.assert_array_equal(np.delete(again[:10], 3, axis=0), np.delete(first, 3, axis=0))
    assert (minilm.encode(TEXTS[3:4]) != marked).any()


def test_damaged_vectors_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    cache = EmbeddingCache(path, DIMENSION)
    cache.write("", TEXTS, drawn(TEXTS))
    with sqlite3.connect(path) as connection:
        keys = [_key("", text) for text in TEXTS[:3]]
        connection.execute("UPDATE ragalign_cache SET value = zeroblob(32) WHERE key = ?", keys[:1])
        connection.execute("UPDATE ragalign_cache SET value = x'00' WHERE key = ?", keys[1:2])
        connection.execute("UPDATE ragalign_cache SET checksum = checksum + 1 WHERE key = ?", keys[2:])
    connection.close()
    vectors, missing = read(cache, "", TEXTS)
    assert missing == [0, 1, 2]
    np.testing.assert_array_equal(vectors[3:], drawn(TEXTS)[3:])


@pytest.mark.parametrize("trouble", ["garbage", "folder", "no folder"])
def test_an_unusable_cache_costs_time_only(
    minilm: Encoder, minilm_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    encoder = Encoder.load(minilm_folder, cache=tmp_path / "cache")
    path = tmp_path / "cache" / f"{encoder.fingerprint}.sqlite"
    if trouble == "garbage":
        path.parent.mkdir()
        path.write_bytes(b"no database at all " * 300)
    elif trouble == "folder":
        path.mkdir(parents=True)
    else:
        (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        vectors = encoder.encode(TEXTS[:4])
    np.testing.assert_allclose(vectors, minilm.encode(TEXTS[:4]), atol=2e-6)
    [record] = caplog.records
    assert ("it was renamed to" if trouble == "garbage" else "continuing without it") in record.getMessage()
    assert str(path) in record.getMessage()
    if trouble == "garbage":
        assert n_cached(path.parent) == 4


LONG_ENCODING = """
import sys
from pathlib import Path
from ragalign.encoders import Encoder
encoder = Encoder.load(sys.argv[1], cache=Path(sys.argv[2]))
print("ready", flush=True)
encoder.encode([f"Text {n}: what is {n} times {n}?" for n in range(20_000)])
"""


def n_cached(folder: Path) -> int:
    paths = list(folder.glob("*.sqlite"))
    if not paths:
        return 0
    connection = sqlite3.connect(paths[0], timeout=30)
    try:
        return int(connection.execute("SELECT count(*) FROM ragalign_cache").fetchone()[0])
    except sqlite3.OperationalError:  # the table is not there yet
        return 0
    finally:
        connection.close()


@pytest.mark.slow
def test_a_killed_encoding_resumes(minilm_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LONG_ENCODING, str(minilm_folder), str(tmp_path)]
    counts = []
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            before = n_cached(tmp_path)
            while n_cached(tmp_path) == before:
                assert process.poll() is None
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        counts.append(n_cached(tmp_path))
    assert 0 < counts[0] < counts[1] < 20_000
    [path] = tmp_path.glob("*.sqlite")
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


WRITER = """
import sys
from pathlib import Path
import numpy as np
from ragalign.encoders.cache import EmbeddingCache
cache = EmbeddingCache(Path(sys.argv[1]), 8)
start = int(sys.argv[2])
for n in range(start, start + 40):
    texts = [f"{n}-{m}" for m in range(20)]
    cache.write("", texts, np.full((20, 8), n, np.float32))
    vectors = np.zeros((20, 8), np.float32)
    assert cache.read("", texts, vectors) == [] and (vectors == n).all()
"""


def test_several_processes_share_a_cache(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    # Overlapping ranges: two processes may encode the same text.
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(start)], stderr=subprocess.PIPE, text=True)
        for start in (0, 0, 20)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert (writer.returncode, errors) == (0, "")
    texts = [f"{n}-{m}" for n in range(60) for m in range(20)]
    vectors, missing = read(EmbeddingCache(path, DIMENSION), "", texts)
    assert not missing
    np.testing.assert_array_equal(vectors[:, 0], np.repeat(np.arange(60), 20))


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAGALIGN_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_folder() == tmp_path / "own" / "embeddings"
    monkeypatch.delenv("RAGALIGN_CACHE")
    assert default_cache_folder() == tmp_path / "xdg" / "ragalign" / "embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / ".cache" / "ragalign" / "embeddings"
