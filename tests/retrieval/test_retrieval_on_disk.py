"""Retrieval from an index on disk: the hits of an index in memory, and what is excluded."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragalign.aligner import Aligner
from ragalign.encoders import Encoder
from ragalign.errors import ConfigError, IndexFormatError, IndexMismatchError
from ragalign.indexes import DiskIndex, Index, is_on_disk, open_index
from ragalign.indexes.batches import encoded
from ragalign.pool import Pool
from ragalign.recipes import Recipe, RetrieverSettings, TemplateSettings, data_folder
from ragalign.retrieval import DiskRetriever, Exclusion, make_retriever
from ragalign.types import Demonstration, Query, Turn

QUESTIONS = ["How do I bake bread?", "Write a poem about rain.", "Why is the sky blue?"]


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool.load(data_folder() / "starter.jsonl")


@pytest.fixture(scope="module")
def memory(pool: Pool, minilm: Encoder) -> Index:
    return Index.build(pool, minilm)


@pytest.fixture(scope="module")
def folder(pool: Pool, minilm: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter pool, the first part of which is there twice."""
    path = tmp_path_factory.mktemp("disk") / "index"
    DiskIndex.build(path, encoded([pool[:40], pool], minilm, rows=50), encoder=minilm)
    return path


@pytest.fixture(scope="module")
def disk(folder: Path, minilm: Encoder) -> DiskIndex:
    return DiskIndex.open(folder, encoder=minilm)


def ids(found: list) -> list[list[str]]:
    return [[hit.id for hit in hits] for hits in found]


def test_hits_are_those_of_an_index_in_memory_and_repetitions_are_returned_once(disk: DiskIndex, memory: Index) -> None:
    near, far = (make_retriever("dense", index) for index in (disk, memory))
    for k in (1, 9, 60):
        found, expected = near.retrieve(QUESTIONS, k), far.retrieve(QUESTIONS, k)
        assert ids(found) == ids(expected)
        for one, other in zip(found, expected, strict=True):
            assert [hit.rank for hit in one] == [hit.rank for hit in other]
            assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-5)
    everything = near.retrieve(QUESTIONS[:1], 500)
    assert len(everything[0]) == len(set(ids(everything)[0])) == len(memory)


def test_exclusions_are_those_of_an_index_in_memory(disk: DiskIndex, memory: Index, pool: Pool) -> None:
    asked = [pool[3].instruction, pool[77].instruction.upper(), Query("q", (Turn("user", QUESTIONS[0]),))]
    near, far = (make_retriever("dense", index) for index in (disk, memory))
    for exclude in (
        Exclusion(),
        Exclusion(same_text=False),
        Exclusion(near=0.4),
        Exclusion(near=-1.0),
        Exclusion(ids=frozenset(pool.ids[:100]) | {"unknown"}),
    ):
        assert ids(near.retrieve(asked, 9, exclude=exclude)) == ids(far.retrieve(asked, 9, exclude=exclude))


def test_a_recipe_packs_the_same_prompts(folder: Path, disk: DiskIndex, memory: Index, tiny_model: Path) -> None:
    recipe = Recipe("mine", TemplateSettings("ica"), RetrieverSettings("dense"))
    questions = [Query(str(n), (Turn("user", text),)) for n, text in enumerate(QUESTIONS)]
    packed = [
        [prompt.text for prompt in Aligner.from_recipe(recipe, index=index, tokenizer=tiny_model).pack_many(questions)]
        for index in (disk, memory, folder)
    ]
    assert packed[0] == packed[1] == packed[2]


def test_what_an_index_on_disk_cannot_do_is_said_in_one_line(disk: DiskIndex, folder: Path) -> None:
    with pytest.raises(ConfigError, match="has no retriever 'bm25'; use 'dense'"):
        make_retriever("bm25", disk)
    with pytest.raises(ConfigError, match="no option 'depth'; its options: probes, candidates"):
        make_retriever("dense", disk, depth=3)
    with pytest.raises(ConfigError, match="probes must be a whole number"):
        DiskRetriever(disk, probes=0)
    retriever = DiskRetriever(disk)
    with pytest.raises(ConfigError, match="no filters"):
        retriever.retrieve(QUESTIONS, 3, where={"category": "maths"})
    with pytest.raises(ConfigError, match="not a single text"):
        retriever.retrieve("why?", 3)
    with pytest.raises(IndexFormatError, match="is an index on disk, which this operation does not support"):
        Index.open(folder)


def test_both_kinds_open_by_their_folder(folder: Path, memory: Index, minilm: Encoder, tmp_path: Path) -> None:
    memory.save(tmp_path / "memory")
    assert isinstance(open_index(folder), DiskIndex)
    assert isinstance(open_index(tmp_path / "memory"), Index)
    assert is_on_disk(folder)
    assert not is_on_disk(tmp_path)
    with pytest.raises(IndexFormatError, match="no index folder"):
        open_index(tmp_path / "none")
    other = Encoder.load(minilm.id, query_prompt="query: ", cache=None)
    with pytest.raises(IndexMismatchError, match="was built with the encoder"):
        open_index(folder, encoder=other)


def test_an_index_without_a_recorded_encoder_needs_one(pool: Pool, minilm: Encoder, tmp_path: Path) -> None:
    index = DiskIndex.build(tmp_path / "index", encoded([pool], minilm))
    with pytest.raises(ConfigError, match="records no encoder"):
        make_retriever("dense", index).retrieve(QUESTIONS, 2)
    opened = DiskIndex.open(tmp_path / "index", encoder=minilm)
    assert len(make_retriever("dense", opened).retrieve(QUESTIONS, 2)) == 3


def test_texts_that_the_encoder_cuts_are_counted(minilm: Encoder, tmp_path: Path) -> None:
    pool = Pool.from_demonstrations(
        [Demonstration(f"Question {n}? " + "word " * (400 * (n < 3)), "a") for n in range(9)]
    )
    index = DiskIndex.build(tmp_path / "index", encoded([pool], minilm), encoder=minilm)
    assert index.manifest.n_truncated == 3
    assert DiskIndex.verify(tmp_path / "index").n_truncated == 3
