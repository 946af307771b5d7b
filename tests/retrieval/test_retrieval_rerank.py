from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ragalign.errors import ConfigError, DataError
from ragalign.indexes import Index
from ragalign.retrieval import Bm25Retriever, DenseRetriever, Exclusion, make_retriever

QUERIES = ["How do I bake bread?", "Explain black holes to a child", "Which novel should I read next?"]


def save_cross_encoder(folder: Path, tokenizer_folder: Path, n_labels: int = 1) -> Path:
    """A tiny BERT with random weights: its scores mean nothing, but they are a cross-encoder's."""
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=n_labels,
        initializer_range=0.3,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cross_encoder(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("cross-encoder"), minilm_folder)


def predictions(folder: Path, query: str, texts: list[str]) -> list[float]:
    from sentence_transformers import CrossEncoder

    return [float(score) for score in CrossEncoder(str(folder)).predict([(query, text) for text in texts])]


@pytest.mark.parametrize("first", ["dense", "bm25"])
def test_order_is_the_model_s_over_the_candidates(lima: Index, cross_encoder: Path, first: str) -> None:
    retriever = make_retriever("rerank", lima, model=str(cross_encoder), first=first, n_candidates=30)
    results = retriever.retrieve(QUERIES, 8, exclude=Exclusion())
    stage = (DenseRetriever if first == "dense" else Bm25Retriever)(lima)
    for query, hits, candidates in zip(QUERIES, results, stage.retrieve(QUERIES, 30), strict=True):
        texts = [lima.pool.get(hit.id).instruction for hit in candidates]
        scores = predictions(cross_encoder, query, texts)
        assert len(set(scores)) == 30
        best = sorted(range(30), key=lambda i: -scores[i])[:8]
        assert [hit.id for hit in hits] == [candidates[i].id for i in best]
        assert [hit.score for hit in hits] == pytest.approx([scores[i] for i in best], abs=1e-5)
        # Not just the first eight in another order.
        assert {hit.id for hit in hits} != {hit.id for hit in candidates[:8]}


def test_k_beyond_the_candidates(make_index: Any, cross_encoder: Path) -> None:
    index = make_index([f"instruction {row}" for row in range(20)])
    retriever = make_retriever("rerank", index, model=cross_encoder, n_candidates=3)
    assert [len(hits) for hits in retriever.retrieve(["q", "r"], 15)] == [15, 15]
    assert [len(hits) for hits in retriever.retrieve(["q", "r"], 50)] == [20, 20]
    assert retriever.retrieve(["q"], 5, exclude=Exclusion(frozenset(index.pool.ids))) == [[]]


def test_text_form_is_the_index_s(make_index: Any, cross_encoder: Path) -> None:
    instructions = [f"instruction {row}" for row in range(10)]
    both = make_index(instructions, text="both")
    only = make_index(instructions)
    [a] = make_retriever("rerank", both, model=cross_encoder).retrieve(["q"], 10)
    [b] = make_retriever("rerank", only, model=cross_encoder).retrieve(["q"], 10)
    assert [hit.score for hit in a] != [hit.score for hit in b]


@pytest.mark.parametrize("name", ["nowhere/at all", "some-owner/some-cross-encoder"])
def test_missing_model_is_one_line(
    make_index: Any, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    retriever = make_retriever("rerank", make_index(["a", "b"]), model=name)
    with pytest.raises(ConfigError, match=f"encoder.* {name!r}") as caught:
        retriever.retrieve(["q"], 1)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_damaged_model_is_one_line(make_index: Any, cross_encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(cross_encoder, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="rerank: cannot load the cross-encoder") as caught:
        make_retriever("rerank", make_index(["a", "b"]), model=folder).retrieve(["q"], 1)
    assert "\n" not in str(caught.value)


def test_lone_surrogate_is_one_line(make_index: Any, cross_encoder: Path) -> None:
    retriever = make_retriever("rerank", make_index(["half", "pair"]), model=cross_encoder, first="bm25")
    with pytest.raises(DataError, match="a query cannot be scored"):
        retriever.retrieve(["half \ud800 a pair"], 1)


def test_several_outputs_are_refused(make_index: Any, tmp_path: Path, minilm_folder: Path) -> None:
    folder = save_cross_encoder(tmp_path, minilm_folder, n_labels=3)
    with pytest.raises(ConfigError, match="has 3 outputs"):
        make_retriever("rerank", make_index(["a", "b"]), model=folder).retrieve(["q"], 1)
