"""`ragalign pool score`, `select` and `refine`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.command import Command
from fixtures.scripted_server import ScriptedServer

from ragalign.bench.session import Engine
from ragalign.runs import OutputFile


def test_scores_are_written_shown_and_selected_by(ragalign: Command, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}.", "response": " ".join(["word"] * n)} for n in range(1, 7)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = ("--model", tiny_model, "--backend", "transformers")
    given = tmp_path / "pool.jsonl"
    for rule in ("length", "ifd", "perplexity", "utility"):
        out = tmp_path / f"{rule}.jsonl"
        more = ("--sample", "2") if rule == "utility" else ()
        run = ragalign("pool", "score", given, "--by", rule, *engine, *more, "--out", out)
        assert run.returncode == 0, run.stderr
        assert rule in run.stdout
        given = out
    scores = [json.loads(line)["metadata"]["scores"] for line in given.read_text().splitlines()]
    assert [set(one) for one in scores] == [{"length", "ifd", "perplexity", "utility"}] * 6
    assert not list(tmp_path.glob("*partial*"))
    shown = json.loads(ragalign("pool", "inspect", given, "--json").stdout)["scores"]
    assert shown["length"]["n"] == 6
    run = ragalign("pool", "select", given, "--by", "length", "--top", "2", "--out", tmp_path / "best.jsonl")
    assert run.returncode == 0, run.stderr
    kept = [json.loads(line)["instruction"] for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    assert kept == ["Say 6.", "Say 5."]
    # Lengths need a tokenizer and no model.
    run = ragalign("pool", "score", given, "--by", "length", "--tokenizer", tiny_model, "--out", tmp_path / "l.jsonl")
    assert run.returncode == 0, run.stderr
    run = ragalign("pool", "score", given, "--by", "length", "--out", tmp_path / "l.jsonl")
    assert (run.returncode, run.stderr) == (2, "error: --by length needs --model or --tokenizer, to count tokens\n")


def test_scores_of_another_recipe_are_not_resumed(
    ragalign: Command, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"instruction": f"Say {n}.", "response": f"I say {n}."} for n in range(1, 7)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "constant.jsonl").write_text('{"instruction": "Say hello.", "response": "Hello."}\n')
    for name, constants in (("a", ""), ("b", '[constants]\nfile = "constant.jsonl"\n')):
        (tmp_path / f"{name}.toml").write_text(f'[template]\nform = "ica"\n{constants}')
    score = ("pool", "score", tmp_path / "pool.jsonl", "--by", "utility", "--model", tiny_model, "--backend",
             "transformers", "--sample", "2", "--out", tmp_path / "out.jsonl", "--recipe")  # fmt: skip
    append, n_written = OutputFile.append, 0

    def interrupted(self: OutputFile, *given: Any) -> None:
        nonlocal n_written
        if n_written == 2:
            raise KeyboardInterrupt
        append(self, *given)
        n_written += 1

    with monkeypatch.context() as patch:
        patch.setattr(OutputFile, "append", interrupted)
        assert ragalign(*score, tmp_path / "a.toml").returncode == 130
    monkeypatch.setattr(Engine, "start", lambda *_: pytest.fail("an engine was started"))
    run = ragalign(*score, tmp_path / "b.toml")
    assert run.returncode == 2
    assert "constants was" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score", "POOL", "--by", "beauty", "--model", "MODEL", "--out", "OUT"), "beauty"),
        (("score", "POOL", "--by", "ifd", "--model", "MODEL", "--out", "out.txt"), "use .parquet or .jsonl"),
        (
            ("score", "POOL", "--by", "ifd", "--model", "MODEL", "--out", "OUT", "--gains", "g"),
            "goes with --by utility",
        ),
        (("score", "POOL", "--by", "ifd", "--model", "nosuch", "--out", "OUT"), "nosuch"),
        (("select", "POOL", "--by", "ifd", "--top", "2", "--out", "OUT"), "no scores by ifd"),
        (("select", "POOL", "--by", "ifd", "--top", "0", "--out", "OUT"), "top"),
    ],
)
def test_wrong_options_of_scores_get_one_line(
    ragalign: Command, tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "pool.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    named = {"POOL": tmp_path / "pool.jsonl", "MODEL": tiny_model, "OUT": tmp_path / "out.jsonl"}
    run = ragalign("pool", *(named.get(argument, argument) for argument in arguments))
    assert run.returncode in (1, 2)
    assert message in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_weak_demonstrations_are_refined_and_the_pool_stays(
    ragalign: Command, tiny_model: Path, minilm_folder: Path, tmp_path: Path
) -> None:
    rows = [
        {"instruction": f"Say {n}.", "response": f"I say {n}.", "scores": {"perplexity": 10.0 + n}} for n in range(4)
    ]
    given = tmp_path / "pool.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = given.read_bytes()

    def better(body: dict[str, Any]) -> str:
        return str(body["messages"][0]["content"]).rpartition("Answer:\n")[2] + " I do."

    with ScriptedServer(better) as server:
        refine = (
            "pool", "refine", given, "--backend", server.base_url, "--writer", "chat", "--model", tiny_model,
            "--engine-backend", "transformers", "--by", "perplexity", "--weakest", "3", "--encoder", minilm_folder,
            "--min-similarity", "0", "--out",
        )  # fmt: skip
        short = ragalign(*refine, tmp_path / "refined.jsonl", "--max-requests", "1", "--concurrency", "1")
        assert short.returncode == 0, short.stderr
        assert "2 were not rewritten, for example: the limit of 1 requests is reached" in short.stderr
        run = ragalign(*refine, tmp_path / "refined.jsonl")
        assert run.returncode == 0, run.stderr
        assert len(server.received) == 3, "nothing is paid for twice"
        in_place = ragalign(*refine, given)
    assert in_place.returncode == 2
    assert "is the pool itself" in in_place.stderr
    assert given.read_bytes() == before
    assert not list(tmp_path.glob("*partial*"))
    found = [json.loads(line) for line in (tmp_path / "refined.jsonl").read_text().splitlines()]
    assert found[0]["response"] == "I say 0."
    for n, row in enumerate(found):
        provenance = row["metadata"].get("refined")
        assert row["response"] == f"I say {n}." + (" I do." if provenance else "")
        if provenance:
            assert provenance["after"] < provenance["before"]
            assert provenance["by"] == "chat"
