"""Long requests hold up nobody: refused by their length where that is enough, else prepared apart."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fixtures.chat import ask
from fixtures.scripted_server import ScriptedServer

from ragalign.aligner import Aligner
from ragalign.serving import Limits, ServingSettings
from ragalign.serving.preparing import Job, Preparer
from ragalign.types import Turn

LONG = {
    "words": "the train leaves at nine and ",
    "letters": "a",
    "slashes": "/",
    "signs": "\u4e2d\u6587",
    "emoji": "\U0001f642",
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
@pytest.mark.parametrize("path", ["chat", "system", "completions"])
def test_what_cannot_fit_is_refused_before_it_is_encoded(
    upstream_service: Any, monkeypatch: pytest.MonkeyPatch, text: str, path: str
) -> None:
    content = text * (880_000 // len(text.encode()))
    with ScriptedServer() as server, upstream_service(server) as running:
        tokenizer = running.service.catalog.aligners["ica"].packer.tokenizer
        longest = 0
        encode = type(tokenizer).encode_batch

        def watched(self: Any, texts: Any) -> Any:
            nonlocal longest
            longest = max([longest, *map(len, texts)])
            return encode(self, texts)

        monkeypatch.setattr(type(tokenizer), "encode_batch", watched)
        if path == "completions":
            body: dict[str, Any] = {"model": "tiny", "prompt": content}
        else:
            body = ask(content, model="tiny:ica")
            if path == "system":
                body["messages"] = [{"role": "system", "content": content}, {"role": "user", "content": "Why?"}]
        where = "/v1/completions" if path == "completions" else "/v1/chat/completions"
        answer = httpx.post(f"{running.url}{where}", json=body, timeout=60)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
        assert longest < 1_000
        assert not server.received


def test_six_large_messages_do_not_hold_up_a_small_one(upstream_service: Any) -> None:
    async def main(url: str) -> tuple[float, list[int]]:
        async with httpx.AsyncClient(timeout=120) as client:

            def post(content: str) -> Any:
                return client.post(f"{url}/v1/chat/completions", json=ask(content, model="tiny:ica"))

            assert (await post("warm up")).status_code == 200
            large = [asyncio.create_task(post("the train leaves " * 50_000 + str(n))) for n in range(6)]
            await asyncio.sleep(0.05)
            started = time.monotonic()
            assert (await post("Why is the sky blue?")).status_code == 200
            took = time.monotonic() - started
            return took, [(await one).status_code for one in large]

    with ScriptedServer() as server, upstream_service(server) as running:
        took, statuses = asyncio.run(main(running.url))
    assert statuses == [400] * 6
    assert took < 5  # it was 23 s on an idle machine


def test_the_limit_of_a_body_is_said(upstream_service: Any) -> None:
    settings = ServingSettings(limits=Limits(max_body_bytes=5_000))
    with ScriptedServer() as server, upstream_service(server, settings=settings) as running:
        answer = httpx.post(f"{running.url}/v1/chat/completions", json=ask("x" * 6_000))
    assert answer.status_code == 413
    assert "5,000 bytes" in answer.json()["error"]["message"]


def test_short_conversations_overtake_long_ones(make_aligners: Callable[..., dict[str, Aligner]]) -> None:
    order: list[str] = []
    free = threading.Event()

    async def main() -> None:
        aligner = make_aligners()["zero-shot"]
        preparer = Preparer(0.15)

        async def prepare(name: str, content: str) -> None:
            try:
                await preparer.prepare(Job(aligner, [Turn("user", content)], 16))
            finally:
                order.append(name)

        blocked = asyncio.create_task(preparer.run(free.wait, 900_000))
        longest = asyncio.create_task(prepare("longest", "a b c d " * 9_000))
        longer = asyncio.create_task(prepare("longer", "a b c d " * 4_000))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            await asyncio.gather(*(prepare("short", f"question {n}") for n in range(5)))
        free.set()
        await asyncio.gather(blocked, longest, longer, return_exceptions=True)
        preparer.close()

    asyncio.run(main())
    assert order == ["short"] * 5 + ["longer", "longest"]
