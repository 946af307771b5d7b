"""Rewrites come from a server with faults, and replace only what the base model finds worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.scripted_server import Fault, ScriptedServer

from ragalign.encoders import Encoder
from ragalign.errors import ConfigError, DataError, GenerationError
from ragalign.generation import TransformersGenerator
from ragalign.judging.judges import Judge
from ragalign.judging.retries import RetryPolicy
from ragalign.pool import Pool
from ragalign.recipes import Recipe
from ragalign.tokenization import Tokenizer
from ragalign.types import Demonstration
from ragalign.utility.pool_scores import ResponseScorer, with_scores
from ragalign.utility.refining import judge_rewrites, weakest, with_rewrites
from ragalign.utility.rewriting import RewriteOptions, rewrite

POOL = Pool.from_demonstrations(
    Demonstration(f"Name {n} rivers.", f"River number {n} flows to the sea.", metadata={"n": n}) for n in range(6)
)
FAST = RetryPolicy(max_attempts=7, base_s=0.01, max_wait_s=0.02)


def better(body: dict[str, Any]) -> str:
    """What the model writes: the old answer with a word more."""
    asked = body["messages"][0]["content"]
    return asked.rpartition("Answer:\n")[2] + " Truly."


def options(**changes: Any) -> RewriteOptions:
    return RewriteOptions(**{"retry": FAST, "concurrency": 2, "timeout_s": 5.0, **changes})


def test_a_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise DataError("cannot write r.jsonl: No space left on device")

    monkeypatch.setattr("ragalign.runs.output.OutputFile.append", full)
    with ScriptedServer(better) as server, pytest.raises(DataError, match="No space left"):
        rewrite(list(POOL), Judge("writer", server.base_url), tmp_path / "r.jsonl", options())


def test_faults_are_retried_and_every_rewrite_is_kept(tmp_path: Path) -> None:
    faults = [
        Fault("status", 503), Fault("drop"), Fault("truncate"), Fault("html"),
        Fault("status", 429, {"retry-after": "0"}),
    ]  # fmt: skip
    with ScriptedServer(better, faults) as server:
        found = rewrite(list(POOL), Judge("writer", server.base_url), tmp_path / "r.jsonl", options())
        assert found.problems == {}
        assert found.texts == {one.id: f"{one.response} Truly." for one in POOL}
        assert found.n_requests == 6 + len(faults)
        again = rewrite(list(POOL), Judge("writer", server.base_url), tmp_path / "r.jsonl", options())
        assert (again.texts, again.n_requests) == (found.texts, 0)
    assert all("Name" in request.body["messages"][0]["content"] for request in server.received)
    with pytest.raises(ConfigError, match="writer"):
        rewrite(list(POOL), Judge("other", "http://localhost:9/v1"), tmp_path / "r.jsonl", options())


def test_the_budget_holds_and_the_next_run_goes_where_it_ended(tmp_path: Path) -> None:
    with ScriptedServer(better) as server:
        writer = Judge("writer", server.base_url)
        found = rewrite(list(POOL), writer, tmp_path / "r.jsonl", options(max_requests=4))
        assert (len(found.texts), found.n_requests, len(server.received)) == (4, 4, 4)
        assert len(found.problems) == 2
        assert "limit of 4 requests" in next(iter(found.problems.values()))
        rest = rewrite(list(POOL), writer, tmp_path / "r.jsonl", options(max_requests=4))
        assert (len(rest.texts), rest.n_requests, rest.problems) == (6, 2, {})


def test_a_request_that_fails_for_good_stops_nothing_else(tmp_path: Path) -> None:
    with ScriptedServer(better, [Fault("status", 422)]) as server:
        found = rewrite(list(POOL), Judge("writer", server.base_url), tmp_path / "r.jsonl", options(concurrency=1))
        assert len(found.texts) == 5
        assert list(found.problems) == [POOL.ids[0]]


def test_a_wrong_key_stops_everything(tmp_path: Path) -> None:
    with (
        ScriptedServer(better, [Fault("status", 401)] * 20) as server,
        pytest.raises(GenerationError, match="rejects all requests"),
    ):
        rewrite(list(POOL), Judge("writer", server.base_url), tmp_path / "r.jsonl", options())


def test_an_endpoint_that_is_down_is_not_asked_for_all(tmp_path: Path) -> None:
    found = rewrite(list(POOL), Judge("writer", "http://127.0.0.1:9/v1"), tmp_path / "r.jsonl", options(concurrency=1))
    assert set(found.problems) == set(POOL.ids)
    assert found.texts == {}


def test_empty_replies_are_not_rewrites(tmp_path: Path) -> None:
    with ScriptedServer(lambda body: " ") as server:
        found = rewrite(list(POOL), Judge("writer", server.base_url), tmp_path / "r.jsonl", options())
    assert set(found.texts.values()) == {None}


class PlannedScorer(ResponseScorer):
    """The base model's view, by length: shorter answers have a higher IFD."""

    def __init__(self) -> None:
        pass

    def ifds(self, demonstrations: Any) -> list[float | None]:
        return [1 / len(one.response.split()) for one in demonstrations]


def test_only_what_the_base_model_finds_better_is_kept(minilm: Encoder, tmp_path: Path) -> None:
    texts = {
        POOL.ids[0]: "River 0 flows seaward.",  # better and near
        POOL.ids[1]: f"{POOL[1].response} And more words.",  # worse
        POOL.ids[2]: "Bananas ripen.",  # better by score, but something else
        POOL.ids[3]: None,
        POOL.ids[4]: POOL[4].response,
    }
    verdicts = judge_rewrites(list(POOL), texts, "ifd", PlannedScorer(), minilm, tmp_path / "s.jsonl", {})
    assert [(verdict.is_kept, verdict.reason) for verdict in verdicts] == [
        (True, ""),
        (False, "the base model's ifd does not improve"),
        (False, "its meaning differs"),
        (False, "the reply was empty, refused or cut off"),
        (False, "the rewrite is the same"),
        (False, "it was not rewritten"),
    ]
    refined = with_rewrites(POOL, texts, verdicts, "ifd", "writer")
    assert [one.response for one in refined] == [texts[POOL.ids[0]], *(one.response for one in POOL[1:])]
    provenance = refined[0].metadata["refined"]
    assert provenance["original"] == {"id": POOL.ids[0], "response": POOL[0].response}
    assert provenance["by"] == "writer"
    assert provenance["before"] == pytest.approx(1 / 7)
    assert provenance["after"] == pytest.approx(1 / 4)
    assert refined[0].metadata["n"] == 0
    assert refined[0].metadata["scores"] == {"ifd": pytest.approx(1 / 4)}
    assert list(refined[1:]) == list(POOL[1:])
    with pytest.raises(ConfigError, match="similarity must be between"):
        judge_rewrites([], {}, "ifd", PlannedScorer(), minilm, tmp_path / "s", {}, min_similarity=2)


def test_the_weakest_are_those_with_the_worst_scores() -> None:
    scores = dict(zip(POOL.ids, [0.5, 1.2, 0.9, None, 0.1, 2.0], strict=True))
    scored = with_scores(POOL, "ifd", scores)
    assert [one.metadata["n"] for one in weakest(scored, "ifd", 3)] == [5, 1, 4]
    by_perplexity = with_scores(POOL, "perplexity", scores)
    assert [one.metadata["n"] for one in weakest(by_perplexity, "perplexity", 2)] == [5, 1]
    with pytest.raises(DataError, match="no scores by perplexity"):
        weakest(scored, "perplexity", 3)
    with pytest.raises(ConfigError, match="at least 1"):
        weakest(scored, "ifd", 0)


def test_a_real_model_decides(
    engine: TransformersGenerator, tokenizer: Tokenizer, minilm: Encoder, tmp_path: Path
) -> None:
    """Whatever it decides, what is kept has a better score and a near meaning."""
    texts = {one.id: f"{one.response} Truly." for one in POOL}
    scorer = ResponseScorer(Recipe.load("ica"), tokenizer, engine)
    verdicts = judge_rewrites(list(POOL), texts, "perplexity", scorer, minilm, tmp_path / "s.jsonl", {})
    for verdict in verdicts:
        assert verdict.before is not None
        assert verdict.after is not None
        assert verdict.is_kept == (verdict.after < verdict.before)
    assert json.loads((tmp_path / "s.jsonl").read_text().splitlines()[0])["score"] > 0
