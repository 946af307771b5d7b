"""Texts that are longer than the encoder reads are counted, said, and recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragalign.encoders import Encoder
from ragalign.indexes import Index
from ragalign.indexes.manifest import Manifest
from ragalign.pool import Pool
from ragalign.retrieval import make_retriever
from ragalign.types import Demonstration

PREAMBLE = "Answer as well as you can. " * 60


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("ragalign")]


@pytest.fixture
def pool() -> Pool:
    texts = [*(PREAMBLE + letter for letter in "abc"), "short"]
    return Pool.from_demonstrations(Demonstration(text, "answer") for text in texts)


def test_exactly_those_above_the_limit(minilm: Encoder) -> None:
    assert minilm.max_tokens == 256
    texts = ["", "a", "a " * 254, "a " * 255, "a" * 5000, PREAMBLE]
    assert minilm.truncated(texts).tolist() == [False, False, False, True, False, True]  # a long word is one token


def test_counted_when_indexing_adding_removing_and_searching(
    pool: Pool, minilm: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = Index.build(pool, minilm)
    index.save(tmp_path / "index")
    assert "3 of 4 texts are longer than the 256 tokens of the encoder" in messages(caplog)[0]
    opened = Index.open(tmp_path / "index", encoder=minilm)
    assert (opened.manifest.n_truncated, opened.manifest.encoder.max_tokens) == (3, 256)
    assert opened.remove([pool.ids[0]]).manifest.n_truncated == 2
    assert opened.add(Pool.from_demonstrations([Demonstration(PREAMBLE + "d", "a")])).manifest.n_truncated == 4
    caplog.clear()
    make_retriever("mmr", opened).retrieve([PREAMBLE + "x", "y"], 2)
    [message] = messages(caplog)
    assert message.startswith("1 of 2 questions are longer than the 256 tokens of the encoder")
    caplog.clear()
    make_retriever("dense", opened).retrieve(["y"], 2)
    assert messages(caplog) == []


def test_manifests_without_the_count_open(pool: Pool, minilm: Encoder) -> None:
    values = Index.build(pool, minilm).manifest
    files = {role: {"name": f"{role}-{'0' * 64}.{end}", "size": 1, "sha256": "0" * 64} for role, end in ENDS.items()}
    old = values.to_dict() | {"files": files, "checksum": "0" * 64}
    del old["n_truncated"], old["encoder"]["max_tokens"]
    blank = (json.dumps(old, indent=2) + "\n").encode()
    read = Manifest.from_bytes(signed(blank), "manifest.json")
    assert (read.n_truncated, read.encoder.max_tokens) == (None, None)


ENDS = {"pool": "parquet", "vectors": "npy", "faiss": "faiss"}


def signed(blank: bytes) -> bytes:
    from hashlib import sha256

    return blank.replace(b'"checksum": "' + b"0" * 64, b'"checksum": "' + sha256(blank).hexdigest().encode(), 1)
