"""Which demonstrations make good answers likelier: the similar, random ones, fixed ones, or those of learned utility.

    python benchmarks/selection.py prepare --data ../shared/data --folder build/selection
    python benchmarks/selection.py measure --folder build/selection --seed 0 --limit-s 3000
    python benchmarks/selection.py report --folder build/selection --out benchmarks/results/selection.json

`prepare` builds the pool: LIMA's, Alpaca's and Refined-Alpaca's pairs of at most 150 tokens. `measure` scores 300 of
its own pairs with 20 candidates each, trains an encoder on that, and scores 150 questions of AlpacaEval under all
conditions at 1, 3 and 9 demonstrations; run it again to resume. `--seed 1` shares the gains and the conditions in
which nothing is drawn.
References are cut to their first 32 tokens, prompts have the form of the recipe `ica`, weights are bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from selection_study import FIXED, KEYS, MODEL, SIZES, Study

from ragalign.encoders import Encoder
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.recipes import Recipe
from ragalign.runs import LineFile, write_json
from ragalign.statistics import mean, paired_difference
from ragalign.tokenization import Tokenizer
from ragalign.utility import GainFiles

POOLS = ("lima_1k.jsonl", "alpaca_en_demo.json", "refined_alpaca_1k_longest.json")
QUESTIONS = "alpaca_eval/v2/gpt4_1106_preview.model_outputs.json"
MAX_TOKENS = 150


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    steps = parser.add_subparsers(dest="step", required=True)
    preparing, measuring, reporting = (steps.add_parser(name) for name in ("prepare", "measure", "report"))
    for step in (preparing, measuring, reporting):
        step.add_argument("--folder", type=Path, default=Path("build/selection"))
    preparing.add_argument("--data", type=Path, required=True, help="the pools and AlpacaEval's answers")
    measuring.add_argument("--seed", type=int, default=0)
    measuring.add_argument("--train", type=int, default=300, metavar="N", help="training questions")
    measuring.add_argument("--candidates", type=int, default=20, metavar="N")
    measuring.add_argument("--first", type=int, default=150, metavar="N", help="held-out questions")
    measuring.add_argument(
        "--limit-s", type=float, default=float("inf"), metavar="S", help="stop after so many seconds"
    )
    reporting.add_argument("--out", type=Path, help="where the figures go, as JSON")
    options = parser.parse_args()
    if options.step == "prepare":
        prepare(options.data, options.folder)
        return 0
    if options.step == "measure":
        study = Study(options.folder, options.seed, options.train, options.candidates, options.first, options.limit_s)
        print("everything is measured" if study.run() else "stopped by --limit-s; run the same command again")
        return 0
    found = report(options.folder)
    if options.out is not None:
        write_json(options.out, found)
    print(json.dumps(found, indent=1))
    return 0


def prepare(data: Path, folder: Path) -> None:
    """Build the pool's index, and draw the held-out questions."""
    tokenizer = Tokenizer.load(MODEL)
    template, _ = Recipe.load("ica").make_template()
    demonstrations = [
        replace(one, source=name.partition(".")[0], source_id=None, metadata={})
        for name in POOLS
        for one in Pool.load(data / "pools" / name, unwrap=True)
    ]
    short = (one for one in demonstrations if len(tokenizer.encode(template.render_demonstration(one))) <= MAX_TOKENS)
    Index.build(Pool.from_demonstrations(short).deduplicate(), Encoder.load()).save(folder / "index")
    rows = json.loads((data / QUESTIONS).read_text(encoding="utf-8"))
    order = np.random.default_rng(0).permutation(len(rows))
    drawn = [
        {"id": f"alpaca-{place}", "instruction": rows[place]["instruction"], "reference": rows[place]["output"]}
        for place in order.tolist()
    ]
    write_json(folder / "questions.json", drawn)


def report(folder: Path) -> dict[str, Any]:
    """The figures: nats per token, and paired differences to dense retrieval of the same size."""
    gains = GainFiles(folder / "gains").read()
    seeds = {}
    shared = list(LineFile(folder / "scores-shared.jsonl", KEYS).read())
    for path in sorted(folder.glob("scores-[0-9]*.jsonl")):
        values: dict[str, dict[str, float]] = {}
        n_tokens: dict[str, int] = {}
        shown: dict[str, dict[str, int]] = {}
        for row in [*shared, *LineFile(path, KEYS).read()]:
            values.setdefault(row["condition"], {})[row["question"]] = row["logprob"] / row["n_tokens"]
            shown.setdefault(row["condition"], {})[row["question"]] = row["shown_tokens"]
            n_tokens[row["question"]] = row["n_tokens"]
        # Questions that are scored under all conditions.
        ids = set.intersection(*(set(of) for of in values.values()))
        whole = {name: {id_: of[id_] for id_ in sorted(ids)} for name, of in values.items()}
        seeds[path.stem.removeprefix("scores-")] = {
            "n": len(ids),
            "conditions": {
                name: {
                    "log_likelihood": mean(list(of.values())).to_dict(),
                    "shown_tokens": round(fmean(shown[name][id_] for id_ in of), 1),
                    **_difference(whole, name),
                    **_difference(whole, name, n_tokens),
                }
                for name, of in whole.items()
            }
            | _fixed(whole, shown),
            "thirds": _thirds(whole),
        }
    ceiling = _ceiling(folder)
    return {
        "command": "python benchmarks/selection.py prepare --data ../shared/data\n"
        "python benchmarks/selection.py measure --seed 0\n"
        "python benchmarks/selection.py measure --seed 1\n"
        "python benchmarks/selection.py report --out benchmarks/results/selection.json",
        "model": MODEL,
        "unit": "nats per token of the reference's first 32 tokens; higher is better",
        "pool": {"n": len(Index.open(folder / "index")), "max_tokens": MAX_TOKENS, "of": list(POOLS)},
        "training": {
            "n_questions": len(gains.by_question()),
            "n_pairs": len(gains.gains),
            "encoders": [json.loads(path.read_text()) for path in sorted(folder.glob("training-*.json"))],
        },
        "seeds": seeds,
        "ceiling": ceiling,
        **_machine(folder),
    }


def _machine(folder: Path) -> dict[str, Any]:
    """The machine of the last finished measurement."""
    paths = sorted(folder.glob("machine-*.json"))
    found: dict[str, Any] = json.loads(paths[-1].read_text()) if paths else {}
    return found


def _difference(
    values: dict[str, dict[str, float]], name: str, n_tokens: dict[str, int] | None = None
) -> dict[str, Any]:
    """The difference to dense retrieval; with `n_tokens`, questions count by the tokens of their references.

    Otherwise all questions count alike, and one whose reference has a single token can outweigh many others.
    """
    size = name.rpartition(" ")[2]
    dense = values.get(f"dense {size}")
    if dense is None or name == f"dense {size}":
        return {}
    of = values[name]
    ids = sorted(of)
    if n_tokens is not None:
        weights = {id_: n_tokens[id_] / fmean(n_tokens[each] for each in ids) for id_ in ids}
        weighted = [[weights[id_] * each[id_] for id_ in ids] for each in (of, dense)]
        return {"minus_dense_by_tokens": paired_difference(*weighted, ids).to_dict()}
    return {"minus_dense": paired_difference([of[id_] for id_ in ids], [dense[id_] for id_ in ids], ids).to_dict()}


def _thirds(values: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What a third of the pool chosen by a rule adds to random thirds, whose mean is taken question by question."""
    thirds = {name: of for name, of in values.items() if " third" in name}
    random = [of for name, of in thirds.items() if "random" in name]
    found = {}
    for name, of in thirds.items():
        if "random" not in name:
            ids = sorted(of)
            others = [fmean(each[id_] for each in random) for id_ in ids]
            found[name] = paired_difference([of[id_] for id_ in ids], others, ids).to_dict()
    return found


def _fixed(values: dict[str, dict[str, float]], shown: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The mean of the fixed sets, question by question."""
    found = {}
    for size in SIZES:
        names = [name for number in range(FIXED) if (name := f"fixed {number} {size}") in values]
        if len(names) == FIXED:
            means = {id_: fmean(values[name][id_] for name in names) for id_ in values[names[0]]}
            name = f"fixed (mean of {FIXED}) {size}"
            found[name] = {
                "log_likelihood": mean(list(means.values())).to_dict(),
                "shown_tokens": round(fmean(fmean(shown[name].values()) for name in names), 1),
                **_difference({**values, name: means}, name),
            }
    return found


def _ceiling(folder: Path) -> dict[str, Any] | None:
    """Gains over no demonstration among the held-out questions' candidates, shown alone."""
    if not (folder / "ceiling").is_dir():
        return None
    lists = GainFiles(folder / "ceiling").read().by_question()
    gains = [[gain.per_token for gain in found] for found in lists.values()]
    return {
        "n": len(gains),
        "best_of_candidates": mean([max(found) for found in gains]).to_dict(),
        "mean_of_candidates": mean([fmean(found) for found in gains]).to_dict(),
        "best_minus_mean": mean([max(found) - fmean(found) for found in gains]).to_dict(),
    }


if __name__ == "__main__":
    sys.exit(main())
