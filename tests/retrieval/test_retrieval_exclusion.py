"""Filters and exclusion before the top-k, for all strategies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.pool.queries import read_queries
from ragalign.retrieval import DenseRetriever, Exclusion, FixedRetriever, Retriever, make_retriever
from ragalign.retrieval.words import words
from ragalign.text import normalise

# One fixed order per query, cut at k: a filtered result is the filtered full ranking.
RANKED = ["dense", "bm25", "random", "fixed"]
SELECTED = ["hybrid", "mmr", "dpp"]

WORDS = ["apple", "Apple", "APPLE ", "pear", " pear", "fig tree", "Fig  tree", "plum", "kiwi", "lime", "date", "nut"]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], list[str], int, Exclusion, dict[str, Any] | None]:
    n = draw(st.integers(1, 24))
    instructions = draw(st.lists(st.sampled_from(WORDS), min_size=n, max_size=n))
    queries = draw(st.lists(st.sampled_from([*WORDS, "other", "pear fig"]), min_size=1, max_size=6))
    k = draw(st.integers(1, 26))
    ids = draw(st.sets(st.integers(0, n - 1), max_size=4))
    near = draw(st.one_of(st.none(), st.floats(-1, 0.984375, width=16)))
    same_text = draw(st.booleans())
    where = draw(st.sampled_from([None, {"half": 0}, {"half": [0, 1]}, {"half": 1, "source": ["s0", "s1"]}]))
    return instructions, queries, k, Exclusion(frozenset(map(str, ids)), same_text, near), where


def build(make_index: Any, instructions: list[str]) -> Index:
    n = len(instructions)
    index: Index = make_index(
        instructions,
        dimension=3,
        metadata=[{"half": row % 2} for row in range(n)],
        sources=[f"s{row % 3}" for row in range(n)],
    )
    return index


def with_options(name: str, index: Index) -> Retriever:
    return make_retriever(name, index, **({"ids": index.pool.ids[::-1]} if name == "fixed" else {}))


def permitted(index: Index, query: str, exclude: Exclusion, where: dict[str, Any] | None) -> set[str]:
    vector = index.encoder.encode([query])[0].astype(np.float64)
    out = set()
    for position, demo in enumerate(index.pool):
        other = index.vectors[position].astype(np.float64)
        cosine = vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)
        values = {**demo.metadata, "source": demo.source}
        if where and any(
            values[key] not in want if isinstance(want, list) else values[key] != want for key, want in where.items()
        ):
            continue
        if demo.id in exclude.ids or (exclude.same_text and normalise(demo.instruction) == normalise(query)):
            continue
        if exclude.near is not None and cosine >= exclude.near:
            continue
        out.add(demo.id)
    return out


def resolve(index: Index, exclude: Exclusion) -> Exclusion:
    ids = {index.pool.ids[int(number)] for number in exclude.ids if int(number) < len(index.pool)} | {"unknown id"}
    return Exclusion(frozenset(ids), exclude.same_text, exclude.near)


@pytest.mark.parametrize("name", [*RANKED, *SELECTED])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_k_come_back_and_none_is_excluded(make_index: Any, name: str, case: Any) -> None:
    instructions, queries, k, exclusion, where = case
    index = build(make_index, instructions)
    exclude = resolve(index, exclusion)
    retriever = with_options(name, index)
    results = retriever.retrieve(queries, k, exclude=exclude, where=where)
    full = retriever.retrieve(queries, len(index.pool))
    assert len(results) == len(queries)
    for query, hits, everything in zip(queries, results, full, strict=True):
        good = permitted(index, query, exclude, where)
        if name == "bm25":
            shared = set(words(query))
            good = {id_ for id_ in good if shared & set(words(index.pool.get(id_).instruction))}
        found = [hit.id for hit in hits]
        assert len(found) == len(set(found)) == min(k, len(good))
        assert set(found) <= good
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True) or name == "mmr"
        if name in RANKED:
            kept = [hit for hit in everything if hit.id in good][:k]
            assert scores == pytest.approx([hit.score for hit in kept], abs=1e-5)
            if len({round(hit.score, 4) for hit in everything}) == len(everything):
                assert found == [hit.id for hit in kept]


@pytest.mark.parametrize("name", ["dense", "mmr", "dpp"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.sets(st.integers(0, 29), max_size=25), k=st.integers(1, 12), query=st.sampled_from(["u", "v", "w"]))
def test_excluding_is_like_not_having_them(make_index: Any, name: str, rows: set[int], k: int, query: str) -> None:
    index = make_index([f"instruction {row}" for row in range(30)], dimension=5)
    ids = frozenset(index.pool.ids[row] for row in rows)
    without = Index.build(index.pool.without(ids), index.encoder, kind="flat")
    [excluded] = make_retriever(name, index).retrieve([query], k, exclude=Exclusion(ids))
    [absent] = make_retriever(name, without).retrieve([query], k)
    assert [hit.id for hit in excluded] == [hit.id for hit in absent]
    assert [hit.score for hit in excluded] == pytest.approx([hit.score for hit in absent], abs=1e-5)


def test_many_copies_of_one_query(make_index: Any) -> None:
    """One query with hundreds of copies in the pool, among others with none: all get their k."""
    instructions = ["the same"] * 300 + [f"same instruction {row}" for row in range(40)]
    index = make_index(instructions)
    for name in ("dense", "bm25", "random"):
        results = make_retriever(name, index).retrieve(
            ["The same ", "instruction a", "b, same"], 20, exclude=Exclusion()
        )
        assert [len(hits) for hits in results] == [20, 20, 20]
        assert {index.pool.position(hit.id) for hit in results[0]} <= set(range(300, 340))


@pytest.mark.parametrize("chunk", [None, 10_000])
def test_many_near_copies(make_index: Any, monkeypatch: pytest.MonkeyPatch, chunk: int | None) -> None:
    """Their number is not known beforehand: the ranking is followed until k others have come, in parts if need be."""
    if chunk is not None:
        monkeypatch.setattr("ragalign.retrieval.batch.CHUNK_BYTES", chunk)
    instructions = [f"close, far {row}" for row in range(400)]
    vectors: dict[str, list[float]] = {f"close, far {row}": [1, 0, row / 10_000] for row in range(300)}
    vectors |= {f"close, far {row}": [1, 0.5 + (row - 300) / 100, 0] for row in range(300, 400)}
    vectors |= {"close": [1, 0, 0], "far": [0, 0.1, 1]}
    index = make_index(instructions, dimension=3, vectors=vectors)
    for name in ("dense", "bm25", "random", "mmr"):
        close, far = make_retriever(name, index).retrieve(["close", "far"], 20, exclude=Exclusion(near=0.95))
        assert len(close) == len(far) == 20
        positions = [index.pool.position(hit.id) for hit in close]
        assert min(positions) >= 300
        if name == "dense":
            assert positions == list(range(300, 320))


@pytest.mark.parametrize("kind", ["hnsw", "IVF16,Flat", "IVF8,PQ2x4"])
def test_approximate_indexes_give_k_too(make_index: Any, kind: str) -> None:
    exact = make_index([f"instruction {row}" for row in range(400)], metadata=[{"part": row % 8} for row in range(400)])
    index = Index.build(exact.pool, exact.encoder, kind=kind)
    queries = [f" INSTRUCTION {row}" for row in range(0, 400, 40)]
    results = DenseRetriever(index).retrieve(queries, 45, exclude=Exclusion(near=0.9), where={"part": 0})
    for row, hits in enumerate(results):
        good = permitted(index, queries[row], Exclusion(near=0.9), {"part": 0})
        assert len(hits) == min(45, len(good))
        assert {hit.id for hit in hits} <= good


def test_near_compares_documents_with_documents(make_index: Any) -> None:
    """An encoder with other vectors for queries than for documents still recognises a copy."""
    index = make_index([f"instruction {row}" for row in range(20)], dimension=6)
    encoder = index.encoder

    class Asymmetric(type(encoder)):  # type: ignore[misc]
        query_prompt = "query: "

        def encode(self, texts: Any, *, kind: str = "document", show_progress: bool = False) -> Any:
            return super().encode([f"{self.query_prompt if kind == 'query' else ''}{text}" for text in texts])

    index = Index.build(index.pool, Asymmetric(6, {}), kind="flat")
    query = "instruction 3"
    [hits] = DenseRetriever(index).retrieve([query], 19, exclude=Exclusion(same_text=False, near=0.999))
    assert len(hits) == 19
    assert index.pool.ids[3] not in {hit.id for hit in hits}


def test_near_one_means_the_same_vector(make_index: Any) -> None:
    """Rounding in float32 must not let a copy slip through."""
    instructions = [f"instruction {row}" for row in range(50)]
    index = make_index(instructions, dimension=7, metric="ip")
    results = DenseRetriever(index).retrieve(instructions, 49, exclude=Exclusion(same_text=False, near=1.0))
    for own, hits in zip(index.pool.ids, results, strict=True):
        assert len(hits) == 49
        assert own not in {hit.id for hit in hits}


def test_zero_vectors_are_near_nothing(make_index: Any) -> None:
    index = make_index(["zero", "one"], dimension=2, vectors={"zero": [0, 0], "one": [1, 0], "query": [1, 0]})
    [hits] = make_retriever("random", index).retrieve(["query"], 2, exclude=Exclusion(near=0.5))
    assert [hit.id for hit in hits] == [index.pool.ids[0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": "abc"}, "ids must be a set"),
        ({"near": 1.5}, "near must be between -1 and 1"),
        ({"near": float("nan")}, "near must be a number"),
        ({"near": True}, "near must be a number"),
    ],
)
def test_exclusion_refuses_nonsense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Exclusion(**arguments)


def test_exclusion_takes_any_iterable_of_ids() -> None:
    assert Exclusion(["a", "b", "a"]).ids == frozenset({"a", "b"})  # type: ignore[arg-type]


def test_arguments_are_checked(make_index: Any) -> None:
    retriever = DenseRetriever(make_index(["a", "b"]))
    with pytest.raises(ConfigError, match="wrap it in a list"):
        retriever.retrieve("a text", 1)
    for k in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match="k must be a whole number of at least 1"):
            retriever.retrieve(["a"], k)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'topic'"):
        retriever.retrieve(["a"], 1, where={"topic": "x"})


def test_nothing_asked_and_nothing_there(make_index: Any) -> None:
    retriever = DenseRetriever(make_index(["a", "b"]))
    assert retriever.retrieve([], 3) == []
    assert retriever.retrieve(["q", "r"], 3, where={"source": "elsewhere"}) == [[], []]


@pytest.mark.parametrize("name", [*RANKED, *SELECTED])
def test_everything_excluded(make_index: Any, name: str) -> None:
    index = make_index(["a", "b", "c"])
    retriever = with_options(name, index)
    assert retriever.retrieve(["q", "r"], 2, exclude=Exclusion(frozenset(index.pool.ids))) == [[], []]
    assert retriever.retrieve(["q", "r"], 2, exclude=Exclusion(near=-1.0)) == [[], []]


def test_near_without_an_encoder_says_so() -> None:
    fixed = FixedRetriever(demonstrations=Pool.from_demonstrations([]))
    with pytest.raises(ConfigError, match="near needs an encoder"):
        fixed.retrieve(["q"], 1, exclude=Exclusion(near=0.9))


WRAPPED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:"
)

QUESTIONS = ["instruction", "question", "query", "prompt"]
PASSAGES = ["input", "context", "passage"]
ANSWERS = ["output", "response", "completion", "answer"]
TEXT = st.text(st.sampled_from("abc déЖ中\n"), min_size=1, max_size=12).filter(lambda text: not text.isspace())


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.tuples(st.sampled_from(QUESTIONS), st.sampled_from(PASSAGES), st.sampled_from(ANSWERS)),
    texts=st.tuples(TEXT, st.one_of(st.none(), st.just(""), TEXT), TEXT),
    history=st.sampled_from([None, [], [["earlier", "reply"]], [{"question": "earlier", "answer": "reply"}]]),
    system=st.sampled_from([None, "", "be kind"]),
    nulls=st.booleans(),
    kind=st.sampled_from(["flat", "wrapped", "sharegpt", "messages", "lima"]),
)
def test_every_form_of_a_row_is_known_to_the_guard(
    make_index: Any,
    tmp_path: Path,
    names: tuple[str, str, str],
    texts: tuple[str, str | None, str],
    history: Any,
    system: str | None,
    nulls: bool,
    kind: str,
) -> None:
    """What a row asks is the same read as a demonstration, as a query, and as a judged answer."""
    question, passage, answer = texts
    whole = question if not passage or not passage.strip() else f"{question}\n{passage}"
    as_query: dict[str, Any]
    if kind in ("flat", "wrapped"):
        empty: dict[str, Any] = dict.fromkeys([*QUESTIONS, *PASSAGES, *ANSWERS, "messages"]) if nulls else {}
        row = empty | dict(zip(names, texts, strict=True)) | {"history": history, "system": system}
        if kind == "wrapped":
            wrapped = WRAPPED.format(question.strip(), (passage or "").strip())
            row = {names[0]: wrapped, names[2]: answer, "history": history}
        as_query = row
    elif kind == "sharegpt":
        row = {"conversations": [{"from": "human", "value": whole}, {"from": "gpt", "value": answer}], "system": system}
        as_query = row
    elif kind == "messages":
        row = {"messages": [{"role": "user", "content": whole}, {"role": "assistant", "content": answer}]}
        as_query = {"messages": row["messages"][:1]}
    else:
        row = as_query = {"conversations": [whole, answer]}
    path, queries = tmp_path / "pool.jsonl", tmp_path / "queries.jsonl"
    path.write_text(json.dumps(row) + "\n")
    queries.write_text(json.dumps(as_query) + "\n")
    [query] = read_queries(queries)
    for unwrapping in (False, True):
        [demo] = pool = Pool.load(path, unwrap=unwrapping)
        assert whole.strip() in demo.instruction or kind == "wrapped"
        assert (passage or "").strip() in demo.instruction
        assert (passage or "").strip() in query.text
        assert pool.report.files[0].unused.keys() <= {"system_turn"}
        index = make_index([demo.instruction, "something else"])
        retriever = make_retriever("random", index)
        [hits] = retriever.retrieve([query], 2, exclude=Exclusion())
        assert [index.pool.get(hit.id).instruction for hit in hits] == ["something else"]
