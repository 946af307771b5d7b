"""Tables of committed results: each function returns Markdown."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from statistics import median
from typing import Any

from table import table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def testbed_results() -> str:
    """The benchmark's results on the testbed."""
    result = _result("bench_testbed")["bench"]
    rows = []
    for condition in result["conditions"]:
        costs, score, difference = (
            condition["costs"],
            condition["quality"]["estimate"],
            condition["quality"].get("difference"),
        )
        apart = ""
        if difference and condition["name"] != result["baseline"]:
            apart = f"{difference['value']:+.1f} ({difference['low']:.1f} to {difference['high']:.1f})"
        shown = [f"{costs[key]['value']:,.0f}" for key in ("demonstrations", "prompt_tokens", "prefilled_tokens")]
        rows.append((f"`{condition['name']}`", shown[0], f"{score['value']:.1f}", apart, *shown[1:]))
    head = ("recipe", "demonstrations", "exact match, %", "minus random, 95 %", "prompt tokens", "prefilled tokens")
    return table(head, rows)


def planning_results() -> str:
    """Tokens prefilled against relevance kept, for every strategy, with ContextPilot between them."""
    result = _result("planning")
    rows = []
    for row in [*result["strategies"]["results"], result["contextpilot"]["results"]]:
        floor = f"{row['min_relevance']:g}" if row["strategy"] in ("relax", "backbone", "hybrid") else ""
        tokens = [f"{row[key]:,.0f}" for key in ("n_prompt_tokens", "n_prefilled", "prefix_bound", "reuse_bound")]
        name = f"`{row['strategy']}`" if " " not in row["strategy"] else f"{row['strategy']} {row['version']}"
        rows.append((name, floor, str(row["personal"]), f"{row['relevance']:.3f}", *tokens))
    head = ("strategy", "floor", "personal", "relevance", "prompt tokens", "prefilled", "≥ prefix", "≥ reuse")
    return table(head, rows)


def gpu_results() -> str:
    """Requests per second on a GPU, for two shapes."""
    parts = []
    for name in ("gpu_8b", "gpu_13b"):
        result = _result(name)
        rows = []
        for setting, row in result["settings"].items():
            relevance = "" if row["relevance_kept"] is None else f"{row['relevance_kept']:.3f}"
            tokens = [f"{row[key]:,.0f}" for key in ("prompt_tokens", "cached_reported")]
            rows.append((f"`{setting}`", relevance, *tokens, f"{row['requests_per_s']:.1f}"))
        head = ("setting", "relevance", "prompt tokens", "cached tokens", "requests/s")
        about = f"{result['shape']} on an {result['gpu']}, {result['queries']} questions:"
        parts.append(f"{about}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def affinity_results() -> str:
    """Prefix affinity against least-busy, simulated."""
    result = _result("affinity")
    rows = []
    for load, settings in result["loads"].items():
        for name in ("least busy", f"prefix, margin {result['margin']}"):
            for instances, key in (("1", name), ("2", f"{name}, two fronts")):
                row = settings[key]
                seconds = [f"{row[key]:.2f}" for key in ("first_token_p50_s", "first_token_p99_s", "whole_p99_s")]
                affinity = "prefix" if name.startswith("prefix") else "none"
                short = load.removesuffix(" conversations/s")
                rows.append((short, f"`{affinity}`", instances, f"{row['prefilled_tokens_per_request']:,}", *seconds))
    head = (
        "load, conversations/s",
        "affinity",
        "instances",
        "prefilled tokens",
        "first token p50, s",
        "p99, s",
        "whole answer p99, s",
    )
    about = f"Simulated ([how](../benchmarks/affinity.py)): {result['servers']} servers, per request:"
    return f"{about}\n\n{table(head, rows)}\n\n{_engines()}"


def _engines() -> str:
    """Prefix affinity against least-busy over two real engines: medians over the rounds."""
    result = _result("affinity_engines")
    rows = []
    for load, arms in result["loads"].items():
        for affinity in ("none", "prefix"):
            arm = arms[affinity]
            tokens, *seconds = (
                median(arm[key]) for key in ("prefilled_tokens_per_request", "whole_p50_s", "whole_p99_s")
            )
            share = median(max(shares) for shares in arm["server_shares"])
            rows.append((load, f"`{affinity}`", f"{tokens:,.0f}", *(f"{each:.3f}" for each in seconds), f"{share:.0%}"))
    head = ("load", "affinity", "prefilled tokens", "whole answer p50, s", "p99, s", "at the busier server")
    about = (
        "Two real engines with a toy model on the two cores of one machine, three requests at a time, medians of "
        f"{len(result['loads']['even']['none']['whole_p50_s'])} interleaved rounds of {result['requests_per_run']} "
        "requests. The engines busy-wait and so slow each other down: when one is slowed, `none` sends nearly "
        "everything to the other, so the times say little about two machines."
    )
    return f"{about}\n\n{table(head, rows)}"


def disk_results() -> str:
    """The index on disk, at every size that was measured."""
    rows = []
    for size in _result("disk_index")["sizes"].values():
        build, use = size["build"], size["use"]
        probe, question = use["probes"]["64"], use["question"]
        rows.append(
            (
                f"{size['n']:,}",
                f"`{build['factory']}`",
                f"{build['build_s'] / 60:.1f} min",
                f"{build['anonymous_gib']:g} / {build['peak_gib']:g}",
                f"{use['open_s']:.2f} s",
                f"{use['anonymous_gib']:g} / {use['peak_gib']:g}",
                f"{probe['recall_at_10']:.3f}",
                f"{probe['median_ms']:.1f} / {probe['p99_ms']:.1f} ms",
                f"{question['median_ms']:.1f} / {question['p99_ms']:.1f} ms",
            )
        )
    head = (
        "vectors",
        "FAISS kind",
        "build",
        "its memory, GiB",
        "open",
        "search memory, GiB",
        "recall of ten",
        "a search, median / p99",
        "20 hits with texts",
    )
    about = "Measured on two cores with the defaults, 64 lists and 30 candidates per hit:"
    return f"{about}\n\n{table(head, rows)}"


def scale_results() -> str:
    """What 100 million demonstrations take, calculated."""
    r = _result("scale")
    check = r["check"]

    def hours(by_number: dict[str, float], noun: str) -> str:
        return ", ".join(f"{value:g} on {n}{noun}" for n, value in by_number.items())

    parts = ", ".join(f"{name} {r[f'{name}_gb']:g}" for name in ("vectors", "texts", "lists", "ids"))
    rows = [
        ("FAISS kind", f"`{r['factory']}`"),
        ("disk", f"{r['disk_gb']:,} GB: {parts}; {r['building_disk_gb']:,} GB while it is built"),
        (
            "memory to build",
            f"{r['training_sample_gb']:g} GB for training, {r['sorting_ids_gb']:g} GB for sorting ids",
        ),
        ("memory to search", f"{r['memory_gb']:g} GB, {r['memory_with_lists_cached_gb']:g} GB with all lists cached"),
        ("a search, files cached", f"{r['search_ms_64_probes_cached']:g} ms"),
        ("encoding with MiniLM in float32, hours", hours(r["encode_hours_by_cores"], " cores")),
        ("encoding in bfloat16, hours", hours(r["encode_hours_by_cores_bfloat16"], " cores")),
        ("training and lists, hours on two cores", f"{r['index_hours_two_cores']:g}"),
        ("a million prompts to an 8B model, hours by GPUs", hours(r["million_prompts_hours_by_gpus"], "")),
    ]
    sizes = ", ".join(
        f"{name} {check[name]['calculated']:g} ({check[name]['measured']:g})"
        for name in ("vectors", "lists", "ids", "texts", "centroids")
    )
    times = ", ".join(
        f"{noun} {check[name]['calculated']:g} ({check[name]['measured']:g}) {unit}"
        for name, noun, unit in (
            ("training_s", "training", "s"),
            ("build_s", "build", "s"),
            ("query_ms", "search", "ms"),
        )
    )
    about = (
        f"Calculated (`python benchmarks/scale.py`) from the run of {r['basis']:,}, `encoders.json` and `gpu_8b.json`. "
        f"As a check, the same formulas calculate {check['n']:,} from {check['from']:,}; measured values are in "
        f"brackets. Bytes per vector: {sizes}. Times: {times}."
    )
    return f"{about}\n\n{table(('100 million demonstrations', 'calculated'), rows)}"


def published_results() -> str:
    """Published figures that reports show beside measured ones."""
    with (ROOT / "src/ragalign/data/published.toml").open("rb") as file:
        rows = [
            (row["protocol"], row["name"], row["figure"], f"{row['value']:g} {row['unit']}", row["source"])
            for row in tomllib.load(file)["result"]
        ]
    return table(("protocol", "system", "figure", "value", "source"), rows)


def _result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def real_results() -> str:
    """The conditions on the real base model, and their differences to nine retrieved demonstrations."""
    result = _result("real")
    alpaca, ifeval = result["alpaca"], result["ifeval"]
    sizes = result["settings"]["conditions"]
    against = alpaca["against"]["retrieved 9"]
    rows = []
    for name, found in alpaca["means"].items():
        own = [size for place, size in sizes.items() if place == f"alpaca/{name}" or _is_set(place, name)]
        difference = against.get(name, {}).get("nll_first32")
        rows.append(
            (
                name,
                f"{sum(size['prompt_tokens'] for size in own) / len(own):,.0f}",
                f"{found['nll']['value']:.3f}",
                f"{found['nll_first32']['value']:.3f}",
                f"{difference['value']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"
                if difference
                else "",
                f"{found['similarity']['value']:.2f}",
                f"{found['stopped']['value']:.0f}",
                f"{ifeval['means'][name]['instruction_loose']['value']:.1f}",
            )
        )
    head = (
        "demonstrations",
        "prompt tokens",
        "reference, nats",
        "its first 32 tokens",
        "minus retrieved 9, 95 %",
        "similarity",
        "stopped, %",
        "IFEval, instructions, %",
    )
    n = alpaca["means"]["fixed"]["nll"]["n_questions"]
    n_ifeval = ifeval["means"]["fixed"]["instruction_loose"]["n_questions"]
    about = f"{n} questions of AlpacaEval and {n_ifeval} of IFEval, on {result['machine']}:"
    return f"{about}\n\n{table(head, rows)}"


def _is_set(place: str, condition: str) -> bool:
    return condition == "fixed" and place.startswith("alpaca/fixed ")


def selection_results() -> str:
    """What each way to choose demonstrations adds to dense retrieval of as many, by seed where one matters."""
    result = _result("selection")
    seeds = {seed: found["conditions"] for seed, found in result["seeds"].items()}
    first = next(iter(seeds.values()))
    rows = []
    for name in _SELECTIONS:
        for seed, conditions in seeds.items():
            if seed != next(iter(seeds)) and conditions.get(f"{name} 9") == first.get(f"{name} 9"):
                continue  # nothing is drawn
            drawn = any(other.get(f"{name} 9") != first.get(f"{name} 9") for other in seeds.values())
            shown = [conditions.get(f"{name} {size}") for size in (1, 3, 9)]
            tokens = " / ".join("" if found is None else f"{found['shown_tokens']:,.0f}" for found in shown).strip(" /")
            label = name.removesuffix(" at")
            rows.append((f"{label}, seed {seed}" if drawn else label, tokens, *map(_minus_dense, shown)))
    head = ("demonstrations", "their tokens", "one, minus dense", "three, minus dense", "nine, minus dense")
    n = " and ".join(dict.fromkeys(str(found["n"]) for found in result["seeds"].values()))
    nats = [f"{first[f'dense {size}']['log_likelihood']['value']:.3f}" for size in (1, 3, 9)]
    none = first["none"]["log_likelihood"]["value"]
    about = (
        f"{n} questions, nats per token and 95 % intervals. Without demonstrations the log-likelihood is "
        f"{none:.3f}, with one, three and nine dense ones {', '.join(nats[:2])} and {nats[2]}:"
    )
    return f"{about}\n\n{table(head, rows)}"


_SELECTIONS = (
    *("learned", "utility", "utility, stopping at", "bm25", "mmr", "hybrid", "random", "fixed (mean of 5)"),
    *("best-fixed", "greedy-fixed", "longest"),
)


def _minus_dense(found: Any) -> str:
    if found is None or "minus_dense" not in found:
        return ""
    difference = found["minus_dense"]
    return f"{difference['value']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"


def thirds_results() -> str:
    """What thirds of the pool chosen by a rule add to random thirds."""
    rows = []
    for seed, found in _result("selection")["seeds"].items():
        for name, difference in found["thirds"].items():
            shown = f"{difference['value']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"
            rows.append((name.removeprefix("dense in the ").removesuffix(" 3"), seed, shown))
    return table(("third of the pool", "seed", "minus random thirds, 95 %"), rows)
