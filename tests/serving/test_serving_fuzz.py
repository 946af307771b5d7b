"""Bodies that nobody would send, from the service's own OpenAPI description: no 500, and never a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fixtures.live import LiveApp
from fixtures.scripted_server import ScriptedServer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

schemathesis = pytest.importorskip("schemathesis", reason="needs the `dev` extra")

PATHS = ("/v1/chat/completions", "/v1/completions")
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "\ud800"]),
            "content": st.one_of(
                st.text(max_size=60), st.none(), st.integers(), st.lists(st.text(max_size=5), max_size=2)
            ),
        }
    ),
    max_size=5,
)
# What reaches the packer and the engine: drawn from the schema alone, a name is never a model's.
RIGHT = {
    "/v1/chat/completions": {"model": st.sampled_from(["tiny", "tiny:urial", "tiny:ica"]), "messages": MESSAGES},
    "/v1/completions": {"model": st.just("tiny"), "prompt": st.text(max_size=60)},
}


@pytest.fixture(scope="module")
def fuzzed(upstream_service: Any) -> Iterator[LiveApp]:
    with ScriptedServer(lambda _: "fine") as server, upstream_service(server) as running:
        yield running


def check(client: httpx.Client, url: str, body: Any) -> None:
    answer = client.post(url, content=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code < 500, (answer.status_code, answer.text, body)
    assert "Traceback" not in answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
    elif answer.status_code == 200:
        assert answer.json()["choices"]
    else:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert "\n" not in error["message"]


def fuzz(service: LiveApp, path: str, mode: str, n: int) -> None:
    operation = schemathesis.openapi.from_dict(service.app.openapi())[path]["POST"]
    drawn = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))
    right = st.fixed_dictionaries({}, optional=RIGHT[path])

    @settings(max_examples=n, suppress_health_check=list(HealthCheck), phases=[Phase.generate], deadline=None)
    @given(case=drawn, put=st.one_of(st.just({}), right, st.fixed_dictionaries(RIGHT[path])))
    def run(case: Any, put: dict[str, Any]) -> None:
        body = case.body
        if not isinstance(body, dict | list | str | int | float | bool | None):
            body = None  # none was drawn at all
        check(client, service.url + path, {**body, **put} if isinstance(body, dict) else body)

    with httpx.Client(timeout=60) as client:
        run()


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("path", PATHS)
def test_a_hundred_bodies(fuzzed: LiveApp, path: str, mode: str) -> None:
    fuzz(fuzzed, path, mode, 100)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("path", PATHS)
def test_ten_thousand_bodies(fuzzed: LiveApp, path: str, mode: str) -> None:
    fuzz(fuzzed, path, mode, 2500)


@given(content=st.binary(max_size=200))
def test_bytes(fuzzed: LiveApp, content: bytes) -> None:
    answer = httpx.post(fuzzed.url + PATHS[0], content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
