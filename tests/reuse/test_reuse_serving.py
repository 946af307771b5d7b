"""Reuse over HTTP, through the service with an engine of its own and in front of vLLM's own server."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.live import LiveApp

from ragalign.aligner import Aligner
from ragalign.generation.upstream import Upstream
from ragalign.indexes import Index
from ragalign.recipes import Recipe
from ragalign.reuse.layout import manifest_for
from ragalign.reuse.opening import engine_config
from ragalign.reuse.store import Store
from ragalign.serving import create_app
from ragalign.tokenization import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = """
[template]
form = "urial"
[constants]
kind = "random"
pool = "package:starter.jsonl"
n = 1
[retriever]
name = "dense"
candidates = 60
[packing]
max_demonstrations = 2
max_tokens = 1600
max_demonstration_tokens = 600
when_full = "skip"
[decoding]
temperature = 0.0
max_tokens = 6
"""
REUSE = '[reuse]\nenabled = true\nmemory = "2 MB"\n'
QUESTIONS = ["How do I bake bread?", "Why is the sky blue?", "Write a poem about rain.", "What is a prime number?"]


@dataclass
class Servers:
    """Both services over one engine.

    `own` has the engine in its process, as `ragalign serve --model` has; `front` sends its prompts to vLLM's server.
    """

    own: LiveApp
    front: LiveApp
    store: Store


@pytest.fixture(scope="module")
def servers(tiny_model: Path, starter_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    folder = tmp_path_factory.mktemp("serving")
    (folder / "plain.toml").write_text(RECIPE)
    (folder / "kept.toml").write_text(RECIPE + REUSE)
    index, tokenizer = Index.open(starter_index), Tokenizer.load(tiny_model)
    recipes = {name: Recipe.load(folder / f"{name}.toml") for name in ("kept", "plain")}
    plain = Aligner.from_recipe(recipes["plain"], index=index, tokenizer=tokenizer, context_length=2048)
    store = Store.create(folder / "kv", manifest_for(plain.packer))
    engine = _Engine(tiny_model, engine_config(store, recipes["kept"].reuse))
    engine.start()
    try:
        kept = Aligner.from_recipe(
            recipes["kept"], index=index, tokenizer=tokenizer, context_length=2048, store=store.folder
        )
        aligners = {"kept": kept, "plain": plain}
        own = create_app(kept, recipes=aligners, generator=engine.generator, name="tiny")
        upstream = Upstream([engine.url])
        front = create_app(kept, recipes=aligners, generator=upstream, name="tiny")
        with LiveApp(front) as before:
            yield Servers(engine.serve(own), before, Store(store.folder))
    finally:
        engine.stop()


class _Engine:
    """An asynchronous engine and vLLM's own server over it, in an event loop in a thread."""

    def __init__(self, model: Path, connector: dict[str, Any]) -> None:
        self._model = model
        self._connector = connector
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._servers: list[Any] = []
        self.generator: Any = None
        self.url = ""

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(600)

    async def _start(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vLLM's own, while it is imported
            await self._start_both()

    async def _start_both(self) -> None:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        from ragalign.generation import AsyncVllmGenerator

        self.generator = AsyncVllmGenerator(
            self._model,
            dtype="float32",
            max_model_len=2048,
            kv_cache_memory_bytes=2**28,
            kv_transfer_config=self._connector,
        )
        engine = self.generator._engine
        options = ["--model", str(self._model), "--enable-prompt-tokens-details"]
        arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(options)
        arguments.served_model_name = ["tiny"]
        tasks = await engine.get_supported_tasks()
        app = build_app(arguments, tasks, engine.model_config)
        await init_app_state(engine, app.state, arguments, tasks)
        self.url = await self._serve(app)

    async def _serve(self, app: Any) -> str:
        import uvicorn

        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
        server.install_signal_handlers = lambda: None
        self._servers.append((server, asyncio.create_task(server.serve())))
        while not server.started:
            await asyncio.sleep(0.05)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    def serve(self, app: Any) -> Any:
        """Serve an application in the engine's loop."""
        url = asyncio.run_coroutine_threadsafe(self._serve(app), self._loop).result(60)
        return _Running(url, app)

    def stop(self) -> None:
        async def stop() -> None:
            for server, task in reversed(self._servers):
                server.should_exit = True
                await task
            if self.generator is not None and self.generator._engine is not None:
                await self.generator.close()

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(120)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


@dataclass
class _Running:
    url: str
    app: Any


def ask(server: Any, question: str, recipe: str = "kept", **more: Any) -> dict[str, Any]:
    body = {"model": f"tiny:{recipe}", "messages": [{"role": "user", "content": question}]}
    body |= {"ragalign": {"explain": True, "refresh": True}} | more
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def metric(server: Any, name: str) -> float:
    told = httpx.get(f"{server.url}/metrics", timeout=30).text
    found = re.findall(rf"^{re.escape(name)} (\S+)$", told, re.MULTILINE)
    return float(found[0]) if found else 0.0


def wait_for(what: Any, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.2)


def retrieved(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The demonstrations of an answer's prompt, but for the constant one."""
    return [piece for piece in answer["ragalign"]["pieces"] if piece.get("score") is not None]


def kept_of(server: Any, question: str) -> list[str]:
    time.sleep(2)  # the engine keeps while nobody asks
    return [piece["id"] for piece in retrieved(ask(server, question)) if piece["reused"]]


@pytest.mark.parametrize("which", ["own", "front"])
def test_what_is_missing_is_kept_when_nobody_asks_and_reused_from_then_on(servers: Servers, which: str) -> None:
    server, question = getattr(servers, which), QUESTIONS[0 if which == "own" else 1]
    plain = text(ask(server, question, "plain"))
    first = ask(server, question)
    assert first["ragalign"]["n_reused_tokens"] == 0
    assert not any(piece.get("reused") for piece in first["ragalign"]["pieces"])
    assert metric(server, 'ragalign_reuse_demonstrations_total{outcome="miss",recipe="kept"}') > 0
    names = {piece["id"] for piece in retrieved(first)}
    wait_for(lambda: names == set(kept_of(server, question)))
    again = ask(server, question)
    reused = retrieved(again)
    assert reused
    assert all(piece["reused"] for piece in reused)
    assert again["ragalign"]["n_reused_tokens"] == sum(piece["n_tokens"] for piece in reused)
    n_cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert n_cached + again["ragalign"]["n_reused_tokens"] < again["usage"]["prompt_tokens"]
    assert metric(server, 'ragalign_reuse_demonstrations_total{outcome="hit",recipe="kept"}') > 0
    assert metric(server, 'ragalign_reused_tokens_total{recipe="kept"}') > 0
    assert text(ask(server, question, "plain")) == plain  # which reads no approximate block


def test_both_ways_to_the_engine_give_the_same_answers(servers: Servers) -> None:
    own, front = (ask(server, QUESTIONS[0]) for server in (servers.own, servers.front))
    assert text(own) == text(front)
    assert own["ragalign"]["n_reused_tokens"] == front["ragalign"]["n_reused_tokens"] > 0


@pytest.mark.parametrize("which", ["own", "front"])
def test_streams_samples_and_clients_that_leave(servers: Servers, which: str) -> None:
    server = getattr(servers, which)
    expected = text(ask(server, QUESTIONS[0]))
    body = {"model": "tiny:kept", "messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": True}
    body |= {"stream_options": {"include_usage": True}, "ragalign": {"explain": True}}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=120) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    told = "".join(re.findall(r'"content": ?"((?:[^"\\]|\\.)*)"', "".join(lines)))
    assert told.encode().decode("unicode_escape").strip() == expected.strip() or not expected.isascii()
    assert any('"n_reused_tokens":' in line and '"n_reused_tokens":0' not in line.replace(" ", "") for line in lines)
    drawn = ask(server, QUESTIONS[0], n=3, temperature=1.0, seed=7, logprobs=True, top_logprobs=2)
    assert len(drawn["choices"]) == 3
    assert drawn["ragalign"]["n_reused_tokens"] > 0
    assert all(choice["logprobs"]["content"] for choice in drawn["choices"])
    seeded = ask(server, QUESTIONS[0], n=3, temperature=1.0, seed=7, logprobs=True, top_logprobs=2)
    assert [choice["message"] for choice in seeded["choices"]] == [choice["message"] for choice in drawn["choices"]]
    with httpx.stream(
        "POST", f"{server.url}/v1/chat/completions", json=body | {"max_tokens": 500}, timeout=120
    ) as half:
        next(half.iter_lines())
    assert text(ask(server, QUESTIONS[0])) == expected


def test_the_engines_connector_is_in_the_metrics(servers: Servers) -> None:
    ask(servers.own, QUESTIONS[0])
    assert metric(servers.own, 'ragalign_reuse_pieces_total{tier="disk"}') > 0
    assert metric(servers.own, 'ragalign_reuse_bytes_total{move="from_disk"}') > 0
    assert metric(servers.own, 'ragalign_reuse_bytes_total{move="to_cache"}') > 0
    assert metric(servers.own, "ragalign_reuse_loaded_tokens_total") > 0
    assert metric(servers.own, "ragalign_reuse_memory_bytes") > 0
    assert "ragalign_reuse_evictions_total" in httpx.get(f"{servers.own.url}/metrics", timeout=30).text


def test_a_store_that_vanishes_costs_a_prefill_and_comes_back(servers: Servers) -> None:
    shutil.rmtree(servers.store.folder / "pieces")
    for server in (servers.own, servers.front):
        answer = ask(server, QUESTIONS[2])
        assert answer["ragalign"]["n_reused_tokens"] == 0
