"""`ragalign search`, as a script and as a person meets it."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.command import Command

from ragalign.encoders import Encoder
from ragalign.indexes import Index
from ragalign.pool import Pool

TOPICS = ["bread", "black holes", "sorting a list", "the French Revolution", "growing tomatoes", "tax returns"]


def json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small index on disk, of which the encoder is a local folder."""
    base = tmp_path_factory.mktemp("search")
    rows = [
        {
            "id": f"row-{number}",
            "instruction": f"{verb} {topic}.\n{'More words follow. ' * 10}",
            "response": f"About {topic}.",
            "category": "maths" if number % 3 == 0 else "other",
            "year": 2020 + number % 2,
        }
        for number, (verb, topic) in enumerate((v, t) for v in ("Explain", "Write about") for t in TOPICS)
    ]
    rows.append({"instruction": "Nothing but [bold]markup[/bold] \x1b[31m and control characters", "response": "Yes."})
    file = base / "pool.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Index.build(Pool.load(file), Encoder.load(minilm_folder, cache=None)).save(base / "index")
    return base / "index"


@pytest.fixture(scope="module")
def queries(folder: Path) -> Path:
    file = folder.parent / "queries.jsonl"
    rows = [
        {"id": "b", "instruction": "How do I bake bread?"},
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"},
                      {"role": "user", "content": "How do tomatoes grow?"}]},
        {"id": "a", "instruction": "Sort a list"},
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_json_is_one_line_per_query_in_order(ragalign: Command, folder: Path, queries: Path) -> None:
    run = ragalign("search", str(folder), "--queries", str(queries), "-k", "4", "--json")
    assert (run.returncode, run.stderr) == (0, "")
    records = json_lines(run.stdout)
    assert [record["id"] for record in records] == ["b", "2", "a"]
    index = Index.open(folder)
    vectors = index.encoder.encode(["How do I bake bread?", "How do tomatoes grow?", "Sort a list"], kind="query")
    scores = vectors @ index.vectors.T
    for row, record in enumerate(records):
        assert set(record) == {"id", "hits"}
        assert [set(hit) for hit in record["hits"]] == [{"id", "score", "rank", "source_id"}] * 4
        assert [hit["rank"] for hit in record["hits"]] == [1, 2, 3, 4]
        best = (-scores[row]).argsort()[:4]
        assert [hit["id"] for hit in record["hits"]] == [index.pool.ids[i] for i in best]
        assert [hit["score"] for hit in record["hits"]] == pytest.approx(scores[row][best], abs=1e-5)
        assert [hit["source_id"] for hit in record["hits"]] == [index.pool[int(i)].source_id for i in best]


def test_table_fits_the_terminal(ragalign: Command, folder: Path) -> None:
    for columns in (60, 100):
        run = ragalign("search", str(folder), "Nothing but markup and growing tomatoes", "-k", "5", columns=columns)
        assert run.returncode == 0
        lines = run.stdout.splitlines()
        assert lines[0].split() == ["rank", "score", "source", "id", "instruction"]
        assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4", "5"]
        assert max(map(len, lines)) <= columns
        assert "\x1b" not in run.stdout
        assert "[bold]markup[/bold]" in run.stdout
        assert any(line.endswith("…") for line in lines)


def test_tables_of_a_file_name_their_queries(ragalign: Command, folder: Path, queries: Path) -> None:
    run = ragalign("search", str(folder), "--queries", str(queries), "-k", "2", "--retriever", "bm25")
    assert run.returncode == 0
    assert [line for line in run.stdout.splitlines() if line.startswith("query")] == ["query b", "query 2", "query a"]


def test_a_text_finds_itself_unless_excluded(ragalign: Command, folder: Path) -> None:
    index = Index.open(folder)
    text = f"  {index.pool[3].instruction.upper()}"
    command = ("search", str(folder), text, "-k", "13", "--json")
    own = index.pool.ids[3]
    assert [hit["id"] for hit in json_lines(ragalign(*command).stdout)[0]["hits"]].count(own) == 1
    for extra in (["--exclude-self"], ["--exclude-near", "0.98"]):
        hits = json_lines(ragalign(*command, *extra).stdout)[0]["hits"]
        assert own not in {hit["id"] for hit in hits}
        assert len(hits) == 12


def test_filters(ragalign: Command, folder: Path) -> None:
    index = Index.open(folder)

    def found(*conditions: str) -> set[str]:
        flags = [part for condition in conditions for part in ("--where", condition)]
        run = ragalign("search", str(folder), "x", "-k", "50", "--retriever", "random", "--json", *flags)
        assert run.returncode == 0, run.stderr
        return {hit["id"] for hit in json_lines(run.stdout)[0]["hits"]}

    def having(**fields: Any) -> set[str]:
        return {d.id for d in index.pool if all(d.metadata.get(key) == value for key, value in fields.items())}

    assert found("category=maths") == having(category="maths")
    assert found("category=maths", "category=other") == having(category="maths") | having(category="other")
    assert found("category=maths", "year=2021") == having(category="maths", year=2021)
    assert found(f"source={index.pool[0].source}") == set(index.pool.ids)


def test_options_reach_the_retriever(ragalign: Command, folder: Path) -> None:
    from ragalign.retrieval import make_retriever

    run = ragalign(
        "search", str(folder), "Explain tomatoes", "-k", "6", "--json", "--retriever", "mmr",
        "--option", "lambda=0.4", "--option", "first=bm25", "--option", "n_candidates=7",
    )  # fmt: skip
    retriever = make_retriever("mmr", Index.open(folder), **{"lambda": 0.4, "first": "bm25", "n_candidates": 7})
    [expected] = retriever.retrieve(["Explain tomatoes"], 6)
    assert [hit["id"] for hit in json_lines(run.stdout)[0]["hits"]] == [hit.id for hit in expected]
    run = ragalign(
        "search", str(folder), "x", "--json", "--retriever", "hybrid", "--option", 'retrievers=["dense", "random"]'
    )
    assert len(json_lines(run.stdout)[0]["hits"]) == 10


def test_nothing_passes(ragalign: Command, folder: Path) -> None:
    run = ragalign("search", str(folder), "x", "--where", "category=none")
    assert (run.returncode, run.stdout) == (0, "")
    assert "no demonstration passes" in run.stderr
    run = ragalign("search", str(folder), "x", "--where", "category=none", "--json")
    assert json_lines(run.stdout) == [{"id": "1", "hits": []}]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give either a question or --queries FILE"),
        (["x", "--queries", "y.jsonl"], 2, "give either a question or --queries FILE"),
        ([" "], 2, "the text to search for is empty"),
        (["x", "-k", "0"], 2, "-k"),
        (["x", "--retriever", "sparse"], 2, "no retriever 'sparse'; choose one of: dense, bm25"),
        (["x", "--option", "colour=red"], 2, "'dense' has no option 'colour'; its options: none"),
        (["x", "--option", "colour"], 2, "--option 'colour': write it as KEY=VALUE"),
        (["x", "--option", "a=1", "--option", "a=2"], 2, "--option a is given twice"),
        (["x", "--retriever", "mmr", "--option", "lambda=high"], 2, "mmr: lambda must be a number, not 'high'"),
        (["x", "--retriever", "bm25", "--option", "name=y"], 2, "has no option 'name'"),
        (["x", "--where", "=maths"], 2, "--where '=maths': write it as KEY=VALUE"),
        (["x", "--where", "categry=maths"], 2, "no demonstration has the field 'categry'; known fields: category"),
        (["x", "--exclude-near", "3"], 2, "near must be between -1 and 1"),
        (["--queries", "nowhere.jsonl"], 1, "nowhere.jsonl"),
    ],
)
def test_mistakes_are_one_clear_line(
    ragalign: Command, folder: Path, arguments: list[str], code: int, message: str
) -> None:
    run = ragalign("search", str(folder), *arguments)
    assert run.returncode == code
    assert message in run.stderr
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    if "-k" not in arguments:
        assert len(run.stderr.splitlines()) == 1


def test_no_index_there(ragalign: Command, tmp_path: Path) -> None:
    run = ragalign("search", str(tmp_path / "nowhere"), "x")
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert "nowhere" in run.stderr


def test_encoder_that_is_gone(ragalign: Command, folder: Path, minilm_folder: Path, tmp_path: Path) -> None:
    local = shutil.copytree(minilm_folder, tmp_path / "model")
    index = Index.open(folder)
    Index.build(index.pool[:3], Encoder.load(local, cache=None)).save(tmp_path / "index")
    shutil.rmtree(local)
    run = ragalign("search", str(tmp_path / "index"), "x")
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert "encoder cannot be loaded" in run.stderr
    run = ragalign("search", str(tmp_path / "index"), "Explain bread", "--retriever", "bm25", "--json")
    assert run.returncode == 0
    assert len(json_lines(run.stdout)[0]["hits"]) == 3


def test_text_that_is_not_utf8(folder: Path) -> None:
    command = [sys.executable, "-c", "from ragalign_cli.main import main; main()", "search", str(folder), b"caf\xe9"]
    run = subprocess.run(command, capture_output=True, timeout=300, check=False)
    assert run.returncode == 2
    assert b"not valid UTF-8" in run.stderr


def test_help_has_examples_and_loads_nothing_heavy(ragalign: Command) -> None:
    run = ragalign("search", "--help")
    assert run.returncode == 0
    assert "ragalign search indexes/lima" in run.stdout
    assert "Evaluations always" in " ".join(run.stdout.split())
    code = (
        "import sys, ragalign_cli.search; "
        "print([m for m in ('faiss', 'torch', 'transformers', 'bm25s', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_questions_from_standard_input_under_any_name(
    ragalign: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"title": "Explain bread.", "context": "Rye.", "note": "n"},
        {"title": "Explain tax returns.", "context": None},
        {"title": "zebra"},
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(content))))
    run = ragalign("search", folder, "--queries", "-", "--field", "title", "--retriever", "bm25", "-k", "1", "--json")
    assert [len(found["hits"]) for found in json_lines(run.stdout)] == [1, 1, 0]
    assert "not part of any question: note (1 row)" in run.stderr
    assert run.stderr.count("warning: bm25: 1 of 3 questions have no hit") == 1
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    run = ragalign("search", folder, "--queries", "-", "--field", "instruction=title", "--metadata", "note", "--json")
    assert "not part of any question" not in run.stderr
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    run = ragalign("search", folder, "--queries", "-")
    assert run.returncode == 1
    assert run.stderr.startswith("error: standard input:1: no known field holds a question (title, context, note)")


def test_rows_of_a_pool_do_not_find_themselves(ragalign: Command, minilm_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"instruction": "Which year is given in the passage?", "context": passage, "response": year}
        for passage, year in (("The old mill was rebuilt in 1871.", "1871"), ("The bridge fell in 1902.", "1902"))
    ]
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "index"
    ragalign("index", "--pool", path, "--encoder", minilm_folder, "--out", out, "--no-cache")
    run = ragalign("search", out, "--queries", path, "--exclude-self", "--json")
    ids = Index.open(out).pool.ids
    assert [[hit["id"] for hit in found["hits"]] for found in json_lines(run.stdout)] == [[ids[1]], [ids[0]]]
