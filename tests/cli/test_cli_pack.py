"""`ragalign pack`: the command contract, and the recorded prompts of in-context alignment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.command import Command


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_recorded_prompts_come_out(ragalign: Command, lima_index: Path, shared_data: Path) -> None:
    queries = shared_data / "ica" / "queries.jsonl"
    tokenizer = shared_data / "tokenizers" / "llama-2"
    run = ragalign("pack", lima_index, "--recipe", "ica", "--tokenizer", tokenizer, "--queries", queries, "--json")
    assert run.returncode == 0, run.stderr
    packed = lines(run.stdout)
    assert [one["id"] for one in packed] == [one["id"] for one in lines(queries.read_text())]
    assert 8.5 < sum(len(one["demonstrations"]) for one in packed) / len(packed) < 10
    by_id = {one["id"]: one for one in packed}
    golden = lines((shared_data / "ica" / "selection_golden.jsonl").read_text())
    assert len(golden) == 60
    for expected in golden:
        found = by_id[expected["query_id"]]
        chosen = [int(one["source_id"].removeprefix("lima-")) for one in found["demonstrations"]]
        assert chosen[::-1] == expected["selected_most_relevant_first"]
        assert found["text"] == expected["prompt"]
        assert found["n_tokens"] == expected["n_tokens"]


def test_every_candidate_is_accounted_for(ragalign: Command, lima_index: Path, shared_data: Path) -> None:
    run = ragalign(
        "pack", lima_index, "How do brain cells move?", "--tokenizer", shared_data / "tokenizers" / "llama-2", "--json"
    )
    [one] = lines(run.stdout)
    assert set(one) >= {"id", "demonstrations", "n_tokens", "text", "dropped"}
    assert all(set(used) == {"id", "source_id", "score", "n_tokens"} for used in one["demonstrations"])
    assert all(dropped["reason"] in {"too_long", "budget", "stopped"} for dropped in one["dropped"])
    assert len(one["demonstrations"]) + len(one["dropped"]) == 20
    parts = one["n_preamble_tokens"] + one["n_demonstration_tokens"] + one["n_query_tokens"]
    assert one["n_tokens"] == parts
    scores = [used["score"] for used in one["demonstrations"]]
    assert scores == sorted(scores)


def test_people_see_the_prompt_beside_its_origin(ragalign: Command, starter_index: Path, tiny_model: Path) -> None:
    run = ragalign("pack", starter_index, "Why is the sky blue?", "--tokenizer", tiny_model, "--show")
    assert "│ Question: Why is the sky blue?" in run.stdout
    assert "explaining-01" in run.stdout
    assert "longer than one demonstration may be" in run.stdout


def test_a_query_that_does_not_fit_is_named_and_the_others_packed(
    ragalign: Command, starter_index: Path, tiny_model: Path, tmp_path: Path
) -> None:
    queries = tmp_path / "q.jsonl"
    rows = [{"id": "long", "instruction": "word " * 900}, {"id": "short", "instruction": "Hi"}]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ragalign(
        "pack", starter_index, "--tokenizer", tiny_model, "--queries", queries, "--context-length", 600, "--json"
    )
    first, second = lines(run.stdout)
    assert run.returncode == 1
    assert set(first) == {"id", "error"}
    assert "exceeds the model's context of 600 by" in first["error"]
    assert second["id"] == "short"
    assert second["n_tokens"] + second["n_special_tokens"] <= 600
    assert run.stderr.startswith("error: query long:")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["Hi"], 2, "give --tokenizer"),
        (["--tokenizer", "T"], 2, "either a question or --queries"),
        (["Hi", "--queries", "q.jsonl", "--tokenizer", "T"], 2, "either a question or --queries"),
        (["--queries", "gone.jsonl", "--tokenizer", "T"], 1, "gone.jsonl"),
        (["Hi", "--tokenizer", "T", "--recipe", "nope"], 2, "no recipe 'nope'"),
        (["Hi", "--tokenizer", "/nowhere/at/all"], 2, "/nowhere/at/all"),
    ],
)
def test_wrong_arguments_get_one_line(
    ragalign: Command, starter_index: Path, arguments: list[str], code: int, message: str
) -> None:
    run = ragalign("pack", starter_index, *arguments)
    assert run.returncode == code
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_a_missing_index_is_named(ragalign: Command, tiny_model: Path, tmp_path: Path) -> None:
    run = ragalign("pack", tmp_path / "none", "Hi", "--tokenizer", tiny_model)
    assert run.returncode == 1
    assert f"{tmp_path / 'none'}" in run.stderr
