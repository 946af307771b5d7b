"""Places in the queue and deadlines: whatever is cancelled when, no place is lost and every request gets its status."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fixtures.chat import ask
from fixtures.scripted_server import ScriptedServer
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.serving import Limits, ServingSettings
from ragalign.serving.admission import Admission
from ragalign.serving.disconnects import ClientLeftError, run_until_disconnect
from ragalign.serving.errors import ApiError
from ragalign.serving.reloading import SharedRuns


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), running=st.integers(1, 4), waiting=st.integers(0, 12))
def test_no_place_is_lost_however_requests_are_cancelled(seed: int, running: int, waiting: int) -> None:
    draw = random.Random(seed)
    outcomes: Counter[str] = Counter()

    async def work(admission: Admission) -> None:
        try:
            async with admission.place():
                assert admission.n_running <= running
                for _ in range(draw.randrange(4)):
                    await asyncio.sleep(0)
            outcomes["done"] += 1
        except ApiError as error:
            outcomes[str(error.status)] += 1

    async def main() -> None:
        admission = Admission(running, waiting)
        tasks = []
        for _ in range(60):
            tasks.append(asyncio.create_task(work(admission)))
            for _ in range(draw.randrange(3)):
                await asyncio.sleep(0)
            if draw.random() < 0.5:
                draw.choice(tasks).cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in found), found
        assert (admission.n_running, admission.n_waiting) == (0, 0)
        async with asyncio.timeout(1), admission.place():
            pass

    asyncio.run(main())
    assert outcomes["done"]
    assert set(outcomes) <= {"done", "429"}


def test_a_waiter_that_leaves_as_its_turn_comes_hands_it_on() -> None:
    async def main() -> None:
        admission = Admission(1, 5)
        entered: list[int] = []

        async def work(number: int) -> None:
            async with admission.place():
                entered.append(number)

        async with admission.place():
            first, second = asyncio.create_task(work(1)), asyncio.create_task(work(2))
            await asyncio.sleep(0)
            assert admission.n_waiting == 2
            first.cancel()
        await asyncio.wait({first, second}, timeout=1)
        assert first.cancelled()
        assert entered == [2]

    asyncio.run(main())


@pytest.mark.parametrize("leaves", [False, True])
def test_work_ends_with_its_client_and_with_its_time(leaves: bool) -> None:
    ended = asyncio.Event()

    async def receive() -> Any:
        await asyncio.sleep(0.05 if leaves else 60)
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)  # what ends an engine's request takes a moment
            ended.set()

    async def main() -> None:
        if leaves:
            with pytest.raises(ClientLeftError):
                await run_until_disconnect(work(), receive, 30)
        else:
            with pytest.raises(ApiError) as late:
                await run_until_disconnect(work(), receive, 0.05)
            assert late.value.status == 504
        assert ended.is_set()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.004), st.floats(0.0005, 0.004), st.floats(0, 0.004))
def test_a_deadline_never_turns_into_something_else(takes: float, limit: float, leaves: float) -> None:
    async def receive() -> Any:
        await asyncio.sleep(leaves)
        return {"type": "http.disconnect"}

    async def work() -> str:
        await asyncio.sleep(takes)
        return "done"

    async def main() -> None:
        try:
            outcomes.add(await run_until_disconnect(work(), receive, limit))
        except ApiError as error:
            outcomes.add(str(error.status))
        except ClientLeftError:
            outcomes.add("left")
        await asyncio.sleep(0)  # nothing is left that would strike later

    outcomes: set[str] = set()
    asyncio.run(main())
    assert outcomes <= {"done", "504", "left"}


@pytest.mark.parametrize("stream", [False, True])
def test_slow_requests_get_504_and_nothing_else(
    upstream_service: Any, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    limits = Limits(max_running=4, max_waiting=60, timeout_s=1.0)
    slow = ScriptedServer(delay_s=3.0)
    with slow as server, upstream_service(server, settings=ServingSettings(limits=limits)) as running:

        def post(number: int) -> int:
            body = ask(f"number {number}", stream=stream)
            return httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=60).status_code

        with ThreadPoolExecutor(30) as threads:
            assert set(threads.map(post, range(60))) == {504}
        figures = httpx.get(f"{running.url}/metrics").text
        assert "ragalign_requests_running 0.0" in figures
        assert "ragalign_requests_waiting 0.0" in figures
        assert 'code="internal"' not in figures
    assert not [one for one in caplog.records if one.name.startswith("ragalign") and one.levelno >= logging.ERROR]


def test_reloads_coalesce() -> None:
    runs: list[int] = []

    async def main() -> None:
        async def function() -> int:
            runs.append(len(runs))
            await asyncio.sleep(0.02)
            return runs[-1]

        shared = SharedRuns(function)
        first = asyncio.create_task(shared.run())
        await asyncio.sleep(0.01)
        later = [asyncio.create_task(shared.run()) for _ in range(1000)]
        await asyncio.sleep(0)
        later[0].cancel()  # who stops waiting does not stop it for the others
        assert await first == 0
        assert set(await asyncio.gather(*later[1:])) == {1}
        assert await shared.run() == 2

    asyncio.run(main())
    assert runs == [0, 1, 2]


def test_a_failed_run_does_not_end_the_next_one() -> None:
    async def main() -> None:
        outcomes = iter([ValueError("no"), None, None])

        async def function() -> str:
            await asyncio.sleep(0.01)
            if (error := next(outcomes)) is not None:
                raise error
            return "done"

        shared = SharedRuns(function)
        found = await asyncio.gather(shared.run(), shared.run(), return_exceptions=True)
        assert [type(one) for one in found] == [ValueError, ValueError]
        assert await shared.run() == "done"

    asyncio.run(main())
