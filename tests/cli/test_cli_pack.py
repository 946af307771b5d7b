"""`ragalign pack`: the command contract, and the recorded prompts of in-context alignment."""

from __future__ import annotations

import json
import re
import sys
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
    assert "longer than a demonstration is allowed to be" in run.stdout


def test_no_text_steers_the_terminal_or_leaves_the_gutter(
    ragalign: Command, starter_index: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    question = "Why is\x1b[2J the\r\nsky\rblue\u2028then? " + "And here are some more words. " * 20
    run = ragalign("pack", starter_index, question, "--tokenizer", tiny_model, "--show", columns=80)
    shown = [re.sub(r"\x1b\[\d*m", "", line) for line in run.stdout.split("\n")]
    shown = shown[: shown.index(next(line for line in shown if line.startswith("part ")))]
    assert all("\u2502" in line and len(line) <= 80 for line in shown)
    assert not set("".join(shown)) & {"\x1b", "\r", "\u2028"}
    text = " ".join(line.partition("\u2502")[2].strip() for line in shown)
    assert "Question: Why is\u241b[2J the sky\u240dblue\ufffdthen? And here are some more words. And" in text


def test_the_window_is_in_the_json(ragalign: Command, starter_index: Path, tiny_model: Path) -> None:
    arguments = ("pack", starter_index, "Why?", "--tokenizer", tiny_model, "--json")
    [unknown], [known] = lines(ragalign(*arguments).stdout), lines(ragalign(*arguments, "--context-length", 900).stdout)
    assert unknown["context_length"] is None
    assert known["context_length"] == 900
    assert known["n_tokens"] + known["n_special_tokens"] <= 900


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
    assert "error: query long:" in run.stderr


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
    assert run.returncode == 2
    assert f"{tmp_path / 'none'}" in run.stderr
