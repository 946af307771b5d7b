"""Write `benchmarks/README.md` from the committed results.

    python benchmarks/readme.py

Every figure is read from a file in `results/`, and every command from there or from the script's docstring. A result
without an entry below is listed with the first line of its script's docstring. A test compares the page with the files.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
INTRODUCTION = """\
# Benchmarks

Each script compares ragalign with a baseline in one run, in turns, and reports medians and ratios. Results are
committed as JSON in `results/` with the command, the machine and the versions that produced them. This page is written
from them by `python benchmarks/readme.py`.

Most runs shared two processor cores with other work; the load average says how much. Compare ratios within one
result, not seconds between results. Material in `../shared/data` is not part of the repository: it holds the published
pools, prompts and tokenizers that a command names.
"""

# What a result shows, as a format string over its JSON.
_REUSE = (
    "with kept keys and values the first token takes {r[settings][reuse-0 ica][first_token_over_fixed]:.2f} times as "
    "long as with as many fixed demonstrations and a request {r[settings][reuse-0 ica][request_over_fixed]:.2f} times; "
    "without them {r[settings][plain ica][first_token_over_fixed]:.1f} and "
    "{r[settings][plain ica][request_over_fixed]:.1f} times. {r[queries]} questions with "
    "{r[settings][reuse-0 ica][demonstrations]} demonstrations ([Reuse](../docs/reuse.md))."
)
FIGURES = {
    "bench_testbed": "Recipes on the testbed: [the table](../docs/results.md) and [its report](../docs/testbed.html).",
    "testbed": "Why the testbed's conditions differ: [the controls](testbed/README.md).",
    "testbed_training": "Training the testbed's model took {r[seconds]:,} s.",
    "packing": (
        "Packing a prompt of {r[one_prompt][demonstrations_per_prompt]} demonstrations and "
        "{r[one_prompt][tokens_per_prompt]:,.0f} tokens takes {r[one_prompt][pack_us][median]} µs, "
        "{r[one_prompt][times_faster]} times faster than tokenising its text "
        "({r[one_prompt][retokenise_us][median]:,.0f} µs)."
    ),
    "index_build": (
        "`Index.build` and `Index.save` take {r[median_ratio]:.2f} times as long as encoding the same "
        "{r[n_demonstrations]:,} texts with sentence-transformers alone (median of {r[rounds]} rounds)."
    ),
    "search": (
        "Searching {r[n_vectors]:,} vectors takes {r[median_ratio]:.2f} times as long as FAISS alone, with the "
        "same hits."
    ),
    "million": (
        "One million demonstrations ({r[build][kind]}): built in {r[build][build_s]:.0f} s within "
        "{r[build][peak_gib]} GiB, opened in {r[use][open_s]} s, {r[use][one_query_ms][median]} ms a query, recall "
        "of ten {r[use][recall_at_10]}."
    ),
    "encoders": (
        "MiniLM in bfloat16 encodes {r[speed_over_float32][bfloat16]:.2f} times as many texts a second as in float32; "
        "of its ten nearest, {r[recall_at_10][bfloat16]:.1%} are the same."
    ),
    "aligner_overhead": (
        "`Aligner.generate`, retrieval and packing included, takes {r[median_ratio]:.2f} times as long as the bare "
        "engine given the same token ids (shape {r[shape]})."
    ),
    "output_penalty": (
        "The output-only repetition penalty keeps {r[relative_to_none][output_only]:.1%} of the decoding speed "
        "without a penalty; vLLM's own keeps {r[relative_to_none][vllm_prompt_and_output]:.1%}."
    ),
    "planning": "Tokens prefilled against relevance kept: [the table](../docs/planning.md).",
    "planning_engine": (
        "The engine finds exactly the cached tokens that the simulator predicts. `relax` prefills "
        "{r[settings][1][prefilled_ratio]:.1%} of the tokens, in {r[settings][1][seconds_ratio]:.1%} of the time."
    ),
    "planning_testbed": (
        "`relax` at a relevance of {r[strategies][2][relevance]:.2f} keeps {r[strategies][2][exact_match][points]} of "
        "{r[strategies][0][exact_match][points]} points of exact match."
    ),
    "gpu_8b": (
        "On a GPU, {r[settings][ica-order][requests_per_s]} requests/s with retrieved demonstrations, "
        "{r[settings][relax-0.98][requests_per_s]} with `relax`, {r[settings][fixed-3000][requests_per_s]} with the "
        "same demonstrations in every prompt ([the table](../docs/planning.md#on-a-gpu))."
    ),
    "gpu_13b": (
        "The same for a 13B shape: {r[settings][ica-order][requests_per_s]}, "
        "{r[settings][relax-0.98][requests_per_s]} and {r[settings][fixed-3000][requests_per_s]} requests/s."
    ),
    "gpu_reuse_8b": (
        "With demonstrations' keys and values in host memory, {r[settings][reuse][requests_per_s]} requests/s; "
        "{r[settings][ica-order][requests_per_s]} without, {r[settings][fixed-3000][requests_per_s]} with the same "
        "demonstrations in every prompt. One round of {r[queries]} questions: a first look ([Reuse](../docs/reuse.md))."
    ),
    "reuse_160m": f"A Llama shape of 160M random parameters: {_REUSE}",
    "reuse_gemma": f"Gemma 3 270M: {_REUSE}",
    "reuse_gemma_100": f"An earlier run on half the questions: {_REUSE}",
    "reuse_gemma_counts": (
        "The same with 1 to 50 demonstrations: a request with 50 retrieved ones takes "
        "{r[settings][plain 50][request_over_fixed]:.1f} times as long as with as many fixed ones, and "
        "{r[settings][reuse-0 50][request_over_fixed]:.2f} times with kept keys and values ([Reuse](../docs/reuse.md))."
    ),
    "reuse_pool": (
        "With 1,000 to 100,000 demonstrations and 1 GiB of host memory: from a store of 31 GB on a machine with 25 GB, "
        "{r[pools][4][from_disk]:.0%} of the demonstrations are read from disk, and the first token takes "
        "{r[pools][4][reused][first_token_over_fixed]:.2f} times as long as with fixed ones; computed, they take "
        "{r[pools][4][plain][first_token_over_fixed]:.1f} times as long ([Reuse](../docs/reuse.md))."
    ),
    "reuse_check_gemma": (
        "Reuse adds {r[checks][model][difference]:.4f} nats per token to GPT-4's answers under Gemma 3 270M (95 % "
        "interval {r[checks][model][low]:.4f} to {r[checks][model][high]:.4f}; {r[checks][model][n]} questions), and "
        "{r[checks][model][same_top1]:.1%} of the most likely tokens are the same ([Reuse](../docs/reuse.md))."
    ),
    "judge_throughput": (
        "{r[n_judgements]:,} judgements, {r[concurrency]} at once, take {r[measured][0][best_times_ideal]:.2f} times "
        "what the judge's latency alone takes; "
        "{r[measured][1][best_times_ideal]:.2f} times when 30 % of its replies fail."
    ),
    "judge_statistics": (
        "A clustered paired bootstrap over 805 prompts takes {r[paired_difference_805_prompts_s]} s, SciPy's bootstrap "
        "of the same {r[scipy_bootstrap_same_s]} s."
    ),
    "serving_overhead": (
        "The service adds {r[time_to_first_token_beyond_vllm_and_encoder][ica][added_ms][p50]} ms to the first token "
        "of vLLM's "
        "own server and the encoder (toy model), and answers "
        "{r[throughput][empty_caches][median_ratio]:.2f} times as many requests a second with empty caches."
    ),
    "serving_overhead_160m": (
        "With a 160M shape: {r[throughput][empty_caches][median_ratio]:.2f} times as many requests a second with empty "
        "caches, {r[throughput][warm_caches][median_ratio]:.2f} with warm ones."
    ),
    "serving_load": (
        "{r[clients]} clients on a service with room for {r[may_run]} running and {r[may_wait]} waiting requests: "
        "{r[answers_by_status][200]} answers, {r[answers_by_status][429]} refusals, no traceback, and "
        "{r[memory_last_third_over_second_third]:.2f} times the memory in the last third of the run."
    ),
    "serving_fuzz": (
        "{r[bodies]:,} malformed bodies, odd hosts, broken heads and broken servers: "
        "{r[errors_logged]} internal errors."
    ),
    "serving_topic": (
        "At the default threshold of 0.15, {r[thresholds][0.15][follow_ups_that_keep]:.1%} of follow-ups keep their "
        "demonstrations, and {r[thresholds][0.15][changes_noticed]:.1%} of topic changes are noticed."
    ),
    "affinity_engines": ("Prefix affinity against least-busy over two real engines: [the table](../docs/serving.md)."),
    "stopping": (
        "Whether a real base model ends its answers by itself: of {r[recipes][urial][n]} answers by Gemma 3 270M, "
        "{r[recipes][zero-shot][stopped]} with zero-shot, {r[recipes][urial][stopped]} with urial, "
        "{r[recipes][hybrid][stopped]} with hybrid, {r[recipes][reuse][stopped]} with reuse and "
        "{r[recipes][ica][stopped]} with ica, whose template is as published; none leaks a delimiter."
    ),
    "disk_index": "Pools larger than memory, built, opened and searched: [the table](../docs/scaling.md).",
    "scale": "What 100 million demonstrations take, calculated: [the table](../docs/scaling.md).",
    "affinity": "Prefix affinity against least-busy over four servers, simulated: [the table](../docs/serving.md).",
    "selection": (
        "Demonstrations of learned utility, similar, random and fixed ones under a real base model, and what the best "
        "candidate would add: [the tables](../docs/utility.md#what-it-buys)."
    ),
    "shift_testbed": "Token distribution shift on the testbed: [the study](../docs/shift.md).",
    "real": "Demonstrations and a real base model, measured without a judge: [its page](../docs/real.html).",
    "compare_ift_testbed": "Demonstrations against fine-tuning on the testbed: [the study](../docs/compare-ift.md).",
}
# Results of a script with another name, or of a command.
SCRIPTS = {
    "affinity_engines": "affinity",
    "bench_testbed": None,
    "gpu_8b": "gpu/price",
    "gpu_13b": "gpu/price",
    "gpu_reuse_8b": "gpu/reuse",
    "real": "results_real",
    "reuse_check_gemma": None,
    "testbed": "testbed/evaluate",
    "testbed_training": "testbed/train",
}
COMMANDS = {"bench_testbed": "make results", "real": "make results-real"}


class _Numbered(dict[str, Any]):
    """An object whose keys can be numbers, as format strings write them: ``{r[200]}``."""

    def __missing__(self, key: int | str) -> Any:
        if isinstance(key, str):
            raise KeyError(key)
        return self[str(key)]


def page() -> str:
    """The whole page."""
    results = sorted((FOLDER / "results").glob("*.json"))
    order = {name: number for number, name in enumerate(FIGURES)}
    results.sort(key=lambda path: (order.get(path.stem, len(order)), path.stem))
    return "\n".join([INTRODUCTION, *map(_section, results)])


def _section(path: Path) -> str:
    name = path.stem
    result = json.loads(path.read_text(encoding="utf-8"), object_hook=_Numbered)
    script = SCRIPTS.get(name, _script(name))
    source = FOLDER / f"{script}.py"
    described = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) if source.is_file() else None) or ""
    link = f"[{script}.py]({script}.py)" if source.is_file() else ""
    figure = FIGURES[name].format(r=result) if name in FIGURES else described.split("\n\n")[0].replace("\n", " ")
    links = " · ".join(filter(None, [link, f"[result](results/{path.name})"]))
    command = COMMANDS.get(name) or _command(result) or _documented_command(described)
    return f"## {name}\n\n{figure}\n\n```sh\n{command}\n```\n\n{_machine(result)}. {links}\n"


def _script(name: str) -> str:
    """The script of a result: ``reuse`` for ``reuse_gemma``, where there is no ``reuse_gemma``."""
    parts = name.split("_")
    heads = ["_".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((head for head in heads if (FOLDER / f"{head}.py").is_file()), name)


def _machine(result: dict[str, Any]) -> str:
    facts = result.get("bench", {}).get("facts", {})
    if "gpu" in result:
        return f"{result['gpu']}, Python {result['python']}"
    strategies = result.get("strategies", {})
    cores = result.get("cpus") or (strategies.get("cpus") if isinstance(strategies, dict) else None)
    parts = [result["processor"]] if "processor" in result else []
    named = result.get("machine") or facts.get("machine") or ", ".join(parts + ([f"{cores} cores"] if cores else []))
    load = result.get("load_average")
    return (named or "Machine not recorded") + (f", load average {load[0]}" if load else "")


def _command(result: dict[str, Any]) -> str | None:
    strategies = result.get("strategies")
    return result.get("command") or (strategies.get("command") if isinstance(strategies, dict) else None)


def _documented_command(text: str) -> str:
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith("    ") and "python" in line), None)
    if start is None:
        return ""
    end = start + 1
    while lines[end - 1].endswith("\\"):
        end += 1
    return "\n".join(line.removeprefix("    ") for line in lines[start:end])


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(page(), encoding="utf-8")
