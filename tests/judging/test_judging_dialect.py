"""Servers that take other parameters: what is learnt, how often, and what is left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.judge_server import REFUSED_PARAMETERS, JudgeServer
from hypothesis import given
from hypothesis import strategies as st

from ragalign.judging.cache import ReplyCache
from ragalign.judging.dialect import Dialect
from ragalign.judging.judges import Judge
from ragalign.judging.protocols.ica import Ica
from ragalign.judging.requests import Answer, Item
from ragalign.judging.retries import RetryPolicy, failure
from ragalign.judging.runner import run_judge
from ragalign.judging.runs import JudgeRun, RunOptions

N = 30
ITEMS = [Item(str(n), (f"Question {n}?",), Answer("ours", ("A.",)), Answer("theirs", ("B.",))) for n in range(N)]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ReplyCache]:
    with ReplyCache(tmp_path / "replies.sqlite") as opened:
        yield opened


def asked(server: JudgeServer, cache: ReplyCache, **options: Any) -> JudgeRun:
    retry = RetryPolicy(max_attempts=2, base_s=0.01)
    return run_judge(
        Ica(), ITEMS, [Judge("judge", server.base_url)], cache=cache, options=RunOptions(retry=retry, **options)
    )


def reasoning_model(body: dict[str, Any], _count: int) -> str:
    """As OpenAI's reasoning models: one complaint at a time."""
    if "max_tokens" in body:
        return "wants_completion_tokens"
    return "no_temperature" if "temperature" in body else "ok"


@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_reasoning_model_scores_everything(cache: ReplyCache, concurrency: int) -> None:
    with JudgeServer(script=reasoning_model, latency_s=0.02) as server:
        run = asked(server, cache, concurrency=concurrency)
        kinds = Counter(entry.kind for entry in server.log)
        bodies = [entry.body for entry in server.log if entry.kind == "ok"]
    assert all(verdict.is_scored for verdict in run.verdicts)
    assert kinds["ok"] == N
    # Each complaint is learnt from once: only requests in flight meanwhile get it, too.
    assert 1 <= kinds["wants_completion_tokens"] <= concurrency
    assert 1 <= kinds["no_temperature"] <= concurrency
    assert all(body["max_completion_tokens"] == 500 and "temperature" not in body for body in bodies)
    assert run.notes == (
        "judge takes max_completion_tokens instead of max_tokens",
        "judge rejects the protocol's temperature, so the server's default applied",
    )
    with JudgeServer(script=lambda *_: "400") as server:
        again = asked(server, cache)
        assert not server.log, "what is cached does not depend on the parameters' names"
    assert again.verdicts == run.verdicts


def test_the_name_can_be_given(cache: ReplyCache) -> None:
    with JudgeServer(script=lambda body, _: "ok" if "max_completion_tokens" in body else "400") as server:
        run = asked(server, cache, token_limit="max_completion_tokens")
        assert len(server.log) == N
    assert all(verdict.is_scored for verdict in run.verdicts)


def test_a_given_name_is_not_changed(cache: ReplyCache) -> None:
    with JudgeServer(script=lambda *_: "wants_completion_tokens") as server:
        run = asked(server, cache, token_limit="max_tokens")
        assert len(server.log) == N
    assert all("Unsupported parameter" in str(verdict.reason) for verdict in run.verdicts)


def test_a_server_that_refuses_both_names_is_not_asked_for_ever(cache: ReplyCache) -> None:
    def script(body: dict[str, Any], _count: int) -> str:
        return "wants_completion_tokens" if "max_tokens" in body else "wants_max_tokens"

    with JudgeServer(script=script) as server:
        run = asked(server, cache)
        assert len(server.log) <= N + 16
    assert not any(verdict.is_scored for verdict in run.verdicts)


def test_other_complaints_change_nothing(cache: ReplyCache) -> None:
    with JudgeServer(script=lambda *_: "400") as server:
        run = asked(server, cache)
        assert len(server.log) == N
    assert run.notes == ()


def test_parts_are_joined_and_refusals_told_from_empty_replies(cache: ReplyCache) -> None:
    kinds = ["parts", "refused_part", "refusal", "empty", "filtered", "cut"]

    def script(body: dict[str, Any], _count: int) -> str:
        number = next(n for n in range(N) if f"Question {n}?" in body["messages"][-1]["content"])
        return kinds[number % len(kinds)]

    with JudgeServer(script=script) as server:
        run = asked(server, cache)
        good = {entry.text for entry in server.log if entry.kind == "parts"}
    for number, verdict in enumerate(run.verdicts):
        kind = kinds[number % len(kinds)]
        assert verdict.is_scored == (kind == "parts")
        if kind == "parts":
            assert verdict.raw in good
    assert [verdict.reason for verdict in run.verdicts[1:6]] == [
        "the judge refused: I cannot judge this.",
        "the judge refused: I cannot judge this.",
        "the judge's reply is empty",
        "a content filter removed the judge's reply",
        "the judge's reply is empty: it reached the token limit before any text, as reasoning models can",
    ]


BODY = {"model": "m", "messages": [], "temperature": 0.2, "max_tokens": 5}


@pytest.mark.parametrize(
    ("error", "learnt"),
    [
        (REFUSED_PARAMETERS["wants_completion_tokens"], {"max_completion_tokens", "temperature"}),
        ({"param": "max_tokens", "code": "unsupported_parameter"}, {"max_completion_tokens", "temperature"}),
        (
            {"message": "max_tokens is not supported, use max_completion_tokens"},
            {"max_completion_tokens", "temperature"},
        ),
        (
            {"message": '{"type": "extra_forbidden", "loc": ["body", "max_tokens"], "msg": "Extra inputs"}'},
            {"max_completion_tokens", "temperature"},
        ),
        ({"message": "Unknown parameter: max_tokens"}, {"max_completion_tokens", "temperature"}),
        ({"message": "unrecognized request argument supplied: max_tokens"}, {"max_completion_tokens", "temperature"}),
        ({"message": "unexpected keyword argument 'max_tokens'"}, {"max_completion_tokens", "temperature"}),
        ({"message": "`max_tokens` is not supported."}, {"max_completion_tokens", "temperature"}),
        ({"message": "max_tokens is not supported above 100"}, None),
        ({"message": "Unsupported parameter: 'stop'; max_tokens was 5"}, None),
        (REFUSED_PARAMETERS["no_temperature"], {"max_tokens"}),
        ({"message": "`temperature` is deprecated for this model."}, {"max_tokens"}),
        ({"message": "max_tokens is too large: 99999. The model supports at most 8192 tokens."}, None),
        ({"message": "This model does not support images; max_tokens was 5"}, None),
        ({"message": "messages: this model does not support system messages", "param": "messages"}, None),
        ({"message": "temperature must be between 0 and 2"}, None),
        ({}, None),
    ],
)
def test_what_is_learnt_from_an_error(error: dict[str, Any], learnt: set[str] | None) -> None:
    dialect = Dialect()
    assert dialect.learn(BODY, error) == (learnt is not None)
    expected = {"max_tokens", "temperature"} if learnt is None else learnt
    assert set(dialect.translate(BODY)) == {"model", "messages", *expected}


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={name: st.text() for name in ("message", "code", "param")}
            | {"message": st.sampled_from([str(error["message"]) for error in REFUSED_PARAMETERS.values()])},
        ),
        max_size=12,
    )
)
def test_learning_ends(errors: list[dict[str, Any]]) -> None:
    """Whatever a server says, and in whatever order: a question is repeated a few times at most."""
    dialect = Dialect()
    repeated = 0
    for error in errors:
        repeated += dialect.learn(dialect.translate(BODY), error)
    assert repeated <= 3
    assert {"model", "messages"} <= set(dialect.translate(BODY))


@pytest.mark.parametrize(
    "body",
    [{"detail": "why not"}, {"error": "why not"}, {"message": "why not"}, {"detail": [{"msg": "why not"}]},
     {"error": {"message": "why not"}}],
)  # fmt: skip
def test_the_words_of_an_error_are_kept_whatever_its_form(body: dict[str, Any]) -> None:
    assert "why not" in str(failure(400, body, {}).reason)
