"""Encoders against the plain transformers model beneath, and what their fingerprint tells apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ragalign.encoders import Encoder
from ragalign.errors import ConfigError, DataError

TEXTS = [
    "How do brain cells move?",
    "",
    "Write a haiku about the sea.",
    "crème brûlée 你好 🙂 " * 9,
    "Explain quicksort. " * 200,
    "a",
]


def mean_pooled(folder: Path, texts: list[str], max_length: int) -> NDArray[np.float32]:
    """Mean of the last hidden states over the attention mask: one text at a time, so without any padding."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            batch = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
            mask = batch["attention_mask"][0, :, None]
            states = model(**batch).last_hidden_state[0]
            rows.append(((states * mask).sum(0) / mask.sum()).numpy())
    return np.stack(rows)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def plain_folder(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as a plain transformers model, as Contriever is published."""
    folder = tmp_path_factory.mktemp("plain")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(minilm_folder / name, folder / name)
    return folder


def test_vectors_are_the_models_own(minilm: Encoder, minilm_folder: Path) -> None:
    vectors = minilm.encode(TEXTS)
    assert (vectors.shape, vectors.dtype, vectors.flags.c_contiguous) == ((len(TEXTS), 384), np.float32, True)
    np.testing.assert_allclose(vectors, unit(mean_pooled(minilm_folder, TEXTS, 256)), atol=2e-6)
    assert minilm.encode([]).shape == (0, 384)


def test_a_plain_model_is_mean_pooled(plain_folder: Path) -> None:
    encoder = Encoder.load(plain_folder, normalize=False, cache=None)
    expected = mean_pooled(plain_folder, TEXTS, 512)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=2e-5)
    assert encoder.pooling == "mean"
    assert (np.abs(np.linalg.norm(expected, axis=1) - 1) > 0.1).all()
    scaled = Encoder.load(plain_folder, cache=None)
    np.testing.assert_allclose(scaled.encode(TEXTS), unit(expected), atol=2e-6)
    assert scaled.fingerprint != encoder.fingerprint


@given(texts=st.lists(st.sampled_from(TEXTS), max_size=12))
@settings(max_examples=10)
def test_order_and_repetition_change_nothing(minilm: Encoder, texts: list[str]) -> None:
    known = dict(zip(TEXTS, minilm.encode(TEXTS), strict=True))
    expected = np.array([known[text] for text in texts], dtype=np.float32).reshape(len(texts), 384)
    np.testing.assert_allclose(minilm.encode(texts), expected, atol=2e-6)


def test_prompts_go_before_their_kind_of_text(minilm: Encoder, minilm_folder: Path) -> None:
    encoder = Encoder.load(minilm_folder, query_prompt="query: ", document_prompt="passage: ", cache=None)
    for kind, prompt in (("query", "query: "), ("document", "passage: ")):
        expected = minilm.encode([prompt + text for text in TEXTS])
        np.testing.assert_allclose(encoder.encode(TEXTS, kind=kind), expected, atol=2e-6)  # type: ignore[arg-type]
    assert encoder.fingerprint != minilm.fingerprint
    assert (encoder.query_prompt, encoder.document_prompt) == ("query: ", "passage: ")


def test_a_models_own_prompts_are_taken_unless_others_are_given(minilm_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(minilm_folder, folder)
    configuration = folder / "config_sentence_transformers.json"
    prompts = {"query": "query: ", "document": ""}
    configuration.write_text(json.dumps(json.loads(configuration.read_text()) | {"prompts": prompts}))
    assert Encoder.load(folder, cache=None).query_prompt == "query: "
    assert Encoder.load(folder, query_prompt="", cache=None).query_prompt == ""


def test_the_fingerprint_follows_the_content_not_the_place(
    minilm: Encoder, minilm_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(minilm_folder, folder)
    # What does not decide a vector does not count.
    (folder / "README.md").write_text("other words")
    copy = Encoder.load(folder, cache=None)
    assert (copy.fingerprint, copy.revision) == (minilm.fingerprint, minilm.revision)
    assert copy.id == str(folder.resolve()) != minilm.id

    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert Encoder.load(folder, cache=None).fingerprint != minilm.fingerprint
    with pytest.raises(ConfigError, match=f"not {minilm.revision[:12]}"):
        Encoder.load(folder, revision=minilm.revision, cache=None)


def test_what_cannot_be_loaded_is_said_in_one_line(minilm_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no complete model"):
        Encoder.load(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no encoder folder"):
        Encoder.load(tmp_path / "gone")
    with pytest.raises(ConfigError, match="no encoder folder"):
        Encoder.load("./gone")

    cut = tmp_path / "cut"
    shutil.copytree(minilm_folder, cut)
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="cannot load the encoder") as caught:
        Encoder.load(cut)
    assert "\n" not in str(caught.value)

    parts = tmp_path / "parts"
    parts.mkdir()
    shutil.copy(minilm_folder / "config.json", parts)
    listing = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (parts / "model.safetensors.index.json").write_text(json.dumps(listing))
    (parts / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="has no complete model"):
        Encoder.load(parts)


def test_wrong_arguments_are_named(minilm: Encoder, minilm_folder: Path) -> None:
    with pytest.raises(ConfigError, match="'passage'"):
        minilm.encode(["a"], kind="passage")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not one text"):
        minilm.encode("a text")
    with pytest.raises(DataError, match="cannot be encoded"):
        minilm.encode(["fine", "lone \ud800 surrogate"])
    with pytest.raises(ConfigError, match="abacus"):
        Encoder.load(minilm_folder, device="abacus", cache=None)
