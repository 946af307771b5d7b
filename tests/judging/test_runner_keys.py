"""The API key is sent, and appears nowhere else."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import pytest
from fixtures.judge_server import JudgeServer
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.judging.cache import ReplyCache
from ragalign.judging.judges import OPENAI_URL, Judge
from ragalign.judging.protocols.ica import Ica
from ragalign.judging.requests import Answer, Item
from ragalign.judging.retries import RetryPolicy
from ragalign.judging.runner import run_judge
from ragalign.judging.runs import RunOptions

KEY = "sk-proj-Zq81xx_SECRET-77"
ITEMS = [
    Item(str(i), (f"Question {i}?",), Answer("ours", (f"Answer {i}.",)), Answer("theirs", ("Another.",)))
    for i in range(40)
]


def test_the_key_appears_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    faults = ("429", "500", "drop", "drop_midway", "timeout", "truncated", "401", "400", "refusal")
    # The server quotes the key in errors, and in what the judge says.
    with (
        JudgeServer(
            fault_rate=0.4, faults=faults, hang_s=0.3, quote_key=True, text=lambda _: f"1 2\nmy key is {KEY}"
        ) as server,
        ReplyCache(tmp_path / "replies.sqlite") as cache,
    ):
        judge = Judge("judge", server.base_url, "MY_KEY")
        options = RunOptions(timeout_s=0.2, retry=RetryPolicy(max_attempts=3, base_s=0.01))
        run = run_judge(Ica(), ITEMS, [judge], cache=cache, options=options)
        assert {entry.authorization for entry in server.log} == {f"Bearer {KEY}"}
    assert any("[API key]" in (verdict.reason or "") for verdict in run.verdicts)
    assert any("[API key]" in verdict.raw for verdict in run.verdicts)
    seen = [repr(run), repr(judge), caplog.text, *capfd.readouterr()]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    seen += [path.read_bytes().decode("latin-1") for path in files]
    assert not any(KEY in text or "SECRET" in text for text in seen)


def test_the_key_is_in_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY} with blanks\u2028")
    with ReplyCache(None) as cache, pytest.raises(ConfigError) as caught:
        run_judge(Ica(), ITEMS, [Judge("j", "http://127.0.0.1:9/v1")], cache=cache)
    text = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=False).format())
    assert "SECRET" not in text
    assert "OPENAI_API_KEY" in str(caught.value)


def test_openai_needs_a_key_and_local_servers_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with ReplyCache(None) as cache, pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        run_judge(Ica(), ITEMS, [Judge.parse("gpt-4.1")], cache=cache)
    with JudgeServer() as server, ReplyCache(None) as cache:
        run = run_judge(Ica(), ITEMS[:2], [Judge("local", server.base_url)], cache=cache)
        assert [entry.authorization for entry in server.log] == [None, None]
    assert all(verdict.is_scored for verdict in run.verdicts)


def test_judges_may_have_different_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "key-number-one")
    monkeypatch.setenv("KEY_B", "key-number-two\n")
    with JudgeServer() as server, ReplyCache(None) as cache:
        judges = [Judge("a", server.base_url, "KEY_A"), Judge("b", server.base_url, "KEY_B")]
        run_judge(Ica(), ITEMS[:1], judges, cache=cache)
        sent = {entry.body["model"]: entry.authorization for entry in server.log}
    assert sent == {"a": "Bearer key-number-one", "b": "Bearer key-number-two"}


@pytest.mark.parametrize(
    ("text", "model", "base_url"),
    [
        ("gpt-4.1", "gpt-4.1", OPENAI_URL),
        ("my/model@http://localhost:8000/v1/", "my/model", "http://localhost:8000/v1"),
        ("claude@20240620@https://host/openai", "claude@20240620", "https://host/openai"),
        ("claude-3-5@20240620", "claude-3-5@20240620", OPENAI_URL),
        ("m@http://[::1]:8000/v1", "m", "http://[::1]:8000/v1"),
    ],
)
def test_judges_are_named_by_model_and_address(
    text: str, model: str, base_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    judge = Judge.parse(text)
    assert (judge.name, judge.base_url) == (model, base_url)
    assert judge.url == f"{base_url}/chat/completions"


def test_the_usual_variable_names_another_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:9999/v1")
    assert Judge.parse("m").base_url == "http://localhost:9999/v1"
    assert Judge.parse("m@http://other/v1").base_url == "http://other/v1"


@pytest.mark.parametrize(
    "text",
    ["", " ", "@http://x", "m@http://", "m@http://user:pa55word@host/v1", "m@https://h/v1?key=pa55word",
     "m@http://h:notaport", "m@http://h#pa55word", "m@http://[::1"],
)  # fmt: skip
def test_bad_judges_are_refused_without_quoting_secrets(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError) as caught:
        Judge.parse(text)
    assert "pa55word" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_judge_or_a_clear_error(text: str) -> None:
    try:
        judge = Judge.parse(text)
    except ConfigError:
        return
    assert judge.base_url.startswith("http")


@given(st.text(min_size=4))
def test_any_key_is_usable_or_refused_without_quoting_it(key: str) -> None:
    judge = Judge("m", "http://localhost/v1", "K")
    message = ""
    try:
        value = judge.key({"K": key})
    except ConfigError as error:
        message = str(error)
    else:
        assert value is None or f"Bearer {value}".isascii()
    assert key not in message
