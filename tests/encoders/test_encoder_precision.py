"""Encoders in bfloat16: nearly the same neighbours, and never mixed up with float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ragalign.encoders import Encoder
from ragalign.encoders.sentence_transformer import fastest_precision
from ragalign.errors import ConfigError, IndexMismatchError
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.recipes import data_folder


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool.load(data_folder() / "starter.jsonl")


@pytest.fixture(scope="module")
def coarse(minilm_folder: Path) -> Encoder:
    return Encoder.load(minilm_folder, precision="bfloat16", cache=None)


def test_neighbours_are_nearly_the_same(minilm: Encoder, coarse: Encoder, pool: Pool) -> None:
    texts = [demonstration.instruction for demonstration in pool]
    exact, found = minilm.encode(texts), coarse.encode(texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.einsum("nd,nd->n", exact, found).min() > 0.995
    assert not np.array_equal(exact, found)
    nearest = [np.argsort(-(vectors @ vectors.T), axis=1)[:, 1:11] for vectors in (exact, found)]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*nearest, strict=True)])
    assert recall >= 0.97


def test_an_index_remembers_and_does_not_mix(minilm: Encoder, coarse: Encoder, pool: Pool, tmp_path: Path) -> None:
    assert coarse.fingerprint != minilm.fingerprint
    Index.build(pool, coarse).save(tmp_path / "index")
    opened = Index.open(tmp_path / "index")
    assert opened.manifest.encoder.precision == opened.encoder.precision == "bfloat16"
    assert opened.encoder.fingerprint == coarse.fingerprint
    with pytest.raises(IndexMismatchError, match="bfloat16"):
        Index.open(tmp_path / "index", encoder=minilm)


def test_the_cache_keeps_them_apart(minilm_folder: Path, tmp_path: Path) -> None:
    exact = Encoder.load(minilm_folder, cache=tmp_path).encode(["a text"])
    found = Encoder.load(minilm_folder, precision="bfloat16", cache=tmp_path).encode(["a text"])
    assert len(list(tmp_path.glob("*.sqlite"))) == 2
    assert not np.array_equal(exact, found)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_f": True, "avx512_bf16": False}, "float32"),
        ({}, "float32"),
    ],
)
def test_auto_asks_the_processor(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: str) -> None:
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fastest_precision("cpu") == expected


def test_other_precisions_are_refused(minilm_folder: Path) -> None:
    with pytest.raises(ConfigError, match="precision must be 'auto', 'float32' or 'bfloat16', not 'int8'"):
        Encoder.load(minilm_folder, precision="int8")  # type: ignore[arg-type]
