"""Sampling fields of vLLM's users: honoured by the engine, passed on to servers, refused by name, or warned of."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fixtures.chat import ask
from fixtures.scripted_server import Fault, ScriptedServer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# An upstream server has no output_repetition_penalty, which the zero-shot recipe sets for chats.
LOST = {CHAT: ["the recipe's output_repetition_penalty is ignored: not supported by this engine"], COMPLETIONS: []}
PLAIN: dict[str, Any] = {"model": "tiny", "prompt": "The train leaves at", "max_tokens": 12, "temperature": 0}


def complete(url: str, **more: Any) -> Any:
    answer = httpx.post(f"{url}{COMPLETIONS}", json=PLAIN | more, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def text_of(url: str, **more: Any) -> str:
    text: str = complete(url, **more)["choices"][0]["text"]
    return text


@pytest.fixture
def tokens(live: Any) -> Any:
    """The engine's tokenizer: text to ids."""
    return live.service.catalog.aligners["ica"].packer.tokenizer


def test_narrow_sampling_is_greedy(url: str) -> None:
    greedy = text_of(url)
    hot = {"temperature": 1.8, "seed": 3}
    assert text_of(url, **hot) != greedy
    assert text_of(url, **hot, top_k=1) == greedy
    assert text_of(url, **hot, min_p=1.0) == greedy
    assert text_of(url, **hot, top_k=-1) == text_of(url, **hot, top_k=0) == text_of(url, **hot)


@pytest.mark.parametrize("field", ["repetition_penalty", "output_repetition_penalty"])
def test_repetition_penalties_change_completions_and_chats(url: str, field: str) -> None:
    long = {"max_tokens": 40}
    assert text_of(url, **long) != text_of(url, **long, **{field: 5.0})
    assert text_of(url, **long) == text_of(url, **long, **{field: 1.0})
    answers = []
    for more in ({}, {field: 5.0}):
        body = ask(model="tiny:zero-shot", temperature=0, max_tokens=40, **more)
        answers.append(httpx.post(f"{url}{CHAT}", json=body, timeout=120).json()["choices"][0]["message"]["content"])
    assert answers[0] != answers[1]


def test_biased_stopped_and_forced_tokens(url: str, tokens: Any, vllm_engine: Any) -> None:
    [letter] = tokens.encode("e")
    always = {"logit_bias": {str(letter): 100}}
    assert set(text_of(url, **always)) == {"e"}
    stopped = complete(url, **always, stop_token_ids=[letter])
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] == 1
    later = complete(url, **always, stop_token_ids=[letter], min_tokens=5)
    assert later["usage"]["completion_tokens"] >= 5
    end = vllm_engine._engine().get_tokenizer().eos_token_id
    ended = {"logit_bias": {str(end): 100}}
    assert complete(url, **ended)["usage"]["completion_tokens"] == 1
    assert complete(url, **ended, min_tokens=4)["usage"]["completion_tokens"] >= 4
    ignored = complete(url, **ended, ignore_eos=True)
    assert ignored["choices"][0]["finish_reason"] == "length"
    assert ignored["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(
    "prompt",
    [[10**6], [5, 10**6, 7], [[5], [2**31 - 1]], [2**30], [2**40], [-1], [5, -7, 6], [[5], [-2]]],
    ids=["one", "within", "second", "large", "huge", "negative", "negative within", "negative second"],
)
def test_ids_out_of_the_vocabulary_are_named(url: str, prompt: Any) -> None:
    answer = httpx.post(f"{url}{COMPLETIONS}", json=PLAIN | {"prompt": prompt}, timeout=60)
    error = answer.json()["error"]
    tokens = [token for part in prompt for token in (part if isinstance(part, list) else [part])]
    wrong = min(tokens) if min(tokens) < 0 else max(tokens)
    assert (answer.status_code, error["param"]) == (400, "prompt")
    assert str(wrong) in error["message"]
    assert text_of(url)  # and the engine lives


def test_the_last_id_of_the_vocabulary_is_taken(url: str, live: Any) -> None:
    size = live.service.capabilities.vocabulary_size
    assert complete(url, prompt=[5, size - 1])["choices"]
    answer = httpx.post(f"{url}{COMPLETIONS}", json=PLAIN | {"prompt": [5, size]}, timeout=60)
    assert answer.status_code == 400


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("usage", [False, True])
def test_unknown_names_are_said_and_logged_once(
    upstream_service: Any, caplog: pytest.LogCaptureFixture, path: str, usage: bool
) -> None:
    caplog.set_level(logging.WARNING)
    body = (ask() if path == CHAT else dict(PLAIN)) | {"repetition_penalti": 1.2, "xyz\nINFO forged": 1, "store": True}
    with ScriptedServer() as server, upstream_service(server) as running:
        for _ in range(3):
            whole = httpx.post(f"{running.url}{path}", json=body, timeout=60).json()
        options = {"stream": True, "stream_options": {"include_usage": usage}}
        streamed = httpx.post(f"{running.url}{path}", json=body | options, timeout=60).text
        clean = httpx.post(f"{running.url}{path}", json=ask() if path == CHAT else PLAIN, timeout=60).json()
    assert clean.get("warnings", []) == LOST[path]
    *lost, first, second = whole["warnings"]
    assert lost == LOST[path]
    assert "'repetition_penalti'" in first
    assert "did you mean 'repetition_penalty'" in first
    assert "xyz" in second
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert chunks[-1]["warnings"] == whole["warnings"]
    assert not any("warnings" in chunk for chunk in chunks[:-1])
    logged = [record.getMessage() for record in caplog.records if "unknown field in requests" in record.getMessage()]
    assert len(logged) == 2
    assert all("\n" not in message for message in logged)


def test_many_unknown_names_fill_neither_answer_nor_log(
    upstream_service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with ScriptedServer() as server, upstream_service(server) as running:
        for batch in range(3):
            names = {f"name-{batch}-{number}-{'x' * 200}": 1 for number in range(600)}
            found = httpx.post(f"{running.url}{CHAT}", json=ask(**names), timeout=60).json()["warnings"]
    assert found[:1] == LOST[CHAT]
    assert len(found[1:]) == 21
    assert max(map(len, found)) < 200
    assert len([record for record in caplog.records if "unknown field in requests" in record.getMessage()]) == 1_000


def test_a_server_gets_the_fields_that_matter(upstream_service: Any) -> None:
    fields = {
        "top_k": 5, "min_p": 0.1, "min_tokens": 2, "repetition_penalty": 1.2, "stop_token_ids": [7],
        "ignore_eos": True, "logit_bias": {"9": -5}, "presence_penalty": 0.5,
    }  # fmt: skip
    with ScriptedServer() as server, upstream_service(server) as running:
        for path, body in ((CHAT, ask(**fields)), (COMPLETIONS, PLAIN | fields)):
            assert httpx.post(f"{running.url}{path}", json=body, timeout=60).status_code == 200
            assert {name: server.received[-1].body[name] for name in fields} == fields
        httpx.post(f"{running.url}{COMPLETIONS}", json=PLAIN, timeout=60)
        assert not (fields.keys() - {"presence_penalty"}) & server.received[-1].body.keys()


def test_what_a_server_refuses_is_named(upstream_service: Any) -> None:
    fault = Fault("status", 400, message="Extra inputs are not permitted: 'min_p'")
    with ScriptedServer(faults=[fault]) as server, upstream_service(server) as running:
        answer = httpx.post(f"{running.url}{CHAT}", json=ask(min_p=0.5, top_k=3), timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "min_p")


def test_what_no_server_has_is_refused_or_said(make_aligners: Any, upstream_service: Any) -> None:
    aligners = make_aligners()
    strict = aligners["zero-shot"]
    strict.decoding = replace(strict.decoding, output_repetition_penalty=1.1, repetition_penalty=1.0)
    recipes = {"recipes": {"zero-shot": strict}}
    with ScriptedServer() as server, upstream_service(server, **recipes) as running:
        found = httpx.post(f"{running.url}{CHAT}", json=ask(model="tiny:zero-shot"), timeout=60).json()
        assert "output_repetition_penalty" in found["warnings"][0]
        asked = ask(output_repetition_penalty=1.1)
        answer = httpx.post(f"{running.url}{CHAT}", json=asked, timeout=60)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "output_repetition_penalty")


CANNOT = {
    "response_format": {"type": "json_object"},
    "tools": [{"type": "function"}],
    "guided_json": {"type": "object"},
    "use_beam_search": True,
    "best_of": 3,
    "echo": True,
    "bad_words": ["no"],
    "allowed_token_ids": [5],
    "length_penalty": 2.0,
    "include_stop_str_in_output": True,
}
NOTHING = {
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "use_beam_search": False,
    "best_of": 1,
    "echo": False,
    "bad_words": [],
    "length_penalty": 1.0,
    "suffix": None,
    "modalities": ["text"],
}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_cannot_be_honoured_is_refused_on_both_endpoints(upstream_service: Any, path: str) -> None:
    body = ask() if path == CHAT else dict(PLAIN)
    with ScriptedServer() as server, upstream_service(server) as running:
        for field, value in CANNOT.items():
            answer = httpx.post(f"{running.url}{path}", json=body | {field: value}, timeout=60)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"], error["code"]) == (400, field, "unsupported")
        answer = httpx.post(f"{running.url}{path}", json=body | NOTHING, timeout=60)
    assert answer.status_code == 200
    assert answer.json().get("warnings", []) == LOST[path]
