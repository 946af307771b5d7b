"""Which demonstrations make good answers likelier: the similar, random ones, fixed ones, or those of learned utility.

    python benchmarks/selection.py prepare --data ../shared/data --folder build/selection
    python benchmarks/selection.py measure --folder build/selection --seed 0 --limit-s 3000
    python benchmarks/selection.py report --folder build/selection --out benchmarks/results/selection.json

`prepare` builds the pool: LIMA's, Alpaca's and Refined-Alpaca's pairs of at most 150 tokens. `measure` scores 300 of
its own pairs with 20 candidates each, trains an encoder on that, and scores 150 questions of AlpacaEval under all
conditions at 1, 3 and 9 demonstrations; run it again to resume. `--seed 1` shares the gains and draws all else again.
References are cut to their first 32 tokens, prompts have the form of the recipe `ica`, weights are bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ragalign.encoders import Encoder
from ragalign.generation import TransformersGenerator
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.recipes import Recipe
from ragalign.retrieval import Exclusion, make_retriever
from ragalign.runs import LineFile, machine_facts, write_json
from ragalign.statistics import mean, paired_difference
from ragalign.tokenization import Tokenizer
from ragalign.types import Query, Turn
from ragalign.utility import (
    AnsweredQuestion,
    GainFiles,
    GainRun,
    Gains,
    PromptForm,
    ScoreOptions,
    TrainOptions,
    pool_questions,
    train_encoder,
)
from ragalign.utility.pool_scores import ResponseScorer, lengths, measure_scores, select, with_scores
from ragalign.utility.prompts import Scored, score_references

MODEL = "packaged:gemma-3-270m"
POOLS = ("lima_1k.jsonl", "alpaca_en_demo.json", "refined_alpaca_1k_longest.json")
QUESTIONS = "alpaca_eval/v2/gpt4_1106_preview.model_outputs.json"
MAX_TOKENS, REFERENCE_TOKENS = 150, 32
SIZES = (1, 3, 9)
FIXED, N_RANDOM_THIRDS = 5, 3
GREEDY_CANDIDATES, GREEDY_QUESTIONS = 12, 24
_KEYS = ("condition", "question", "logprob")


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


class Study:
    """One seed's measurement in a folder."""

    def __init__(self, folder: Path, seed: int, train: int, candidates: int, first: int, limit_s: float) -> None:
        self._folder, self._seed, self._train, self._candidates = folder, seed, train, candidates
        self._ends = time.monotonic() + limit_s
        self._tokenizer = Tokenizer.load(MODEL)
        self._index = Index.open(folder / "index")
        rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))[:first]
        self._held_out = [
            AnsweredQuestion(Query(row["id"], (Turn("user", row["instruction"]),)), row["reference"]) for row in rows
        ]
        self._form = PromptForm(
            Recipe.load("ica"), self._index.pool, self._tokenizer, max_reference_tokens=REFERENCE_TOKENS
        )
        self._ids = np.array(self._index.pool.ids, dtype=object)

    def run(self) -> bool:
        """Do what is missing; returns whether everything is there."""
        with TransformersGenerator(MODEL, device="cpu") as generator:
            try:
                gains = self._gains(generator)
                self._train_encoder(gains)
                self._score(generator, gains)
            except TimeoutError:
                return False
        write_json(self._folder / f"machine-{self._seed}.json", machine_facts())
        return True

    def _gains(self, generator: TransformersGenerator) -> Gains:
        run = GainRun(
            self._index,
            pool_questions(self._index.pool, self._train),
            self._folder / "gains",
            recipe=Recipe.load("ica"),
            tokenizer=self._tokenizer,
            settings={"model": MODEL, "backend": "transformers", "tokenizer": None, "context_length": None},
            options=ScoreOptions(self._candidates, REFERENCE_TOKENS),
        )
        run.run(lambda: generator, on_pairs=lambda _: self._check_time())
        return run.files.read()

    def _check_time(self) -> None:
        if time.monotonic() > self._ends:
            raise TimeoutError

    @property
    def _encoder(self) -> Path:
        return self._folder / f"encoder-{self._seed}"

    def _train_encoder(self, gains: Gains) -> None:
        if not self._encoder.is_dir():
            options = TrainOptions(seed=self._seed, text="both")
            start = time.perf_counter()
            trained = train_encoder(gains, self._encoder, encoder=self._index.encoder.id, options=options)
            facts = {**trained.to_dict(), "folder": self._encoder.name, "seconds": round(time.perf_counter() - start)}
            write_json(self._folder / f"training-{self._seed}.json", facts)
        self._check_time()

    def _conditions(
        self, generator: TransformersGenerator, gains: Gains
    ) -> Iterator[tuple[str, Callable[[], list[list[str]]]]]:
        """Names and, for each held-out question, the nine demonstrations, best first."""
        most = max(SIZES)
        queries = [question.query for question in self._held_out]

        def retrieved(name: str, index: Index | None = None, **options: Any) -> Callable[[], list[list[str]]]:
            def find() -> list[list[str]]:
                hits = make_retriever(name, index or self._index, **options).retrieve(
                    queries, most, exclude=Exclusion()
                )
                return [[hit.id for hit in found] for found in hits]

            return find

        def constant(ids: Sequence[str]) -> Callable[[], list[list[str]]]:
            return lambda: [list(ids)] * len(queries)

        yield "dense", retrieved("dense")
        yield "bm25", retrieved("bm25")
        yield "mmr", retrieved("mmr")
        yield "hybrid", retrieved("hybrid")
        yield "random", retrieved("random", seed=self._seed)
        draw = np.random.default_rng(self._seed + 100)
        for number in range(FIXED):
            yield f"fixed {number}", constant(draw.permutation(self._ids)[:most].tolist())
        yield "best-fixed", constant(gains.ranking()[:most])
        yield "greedy-fixed", lambda: [self._greedy(generator, gains)] * len(queries)
        words = lengths(self._index.pool, self._tokenizer)
        yield "longest", constant(sorted(words, key=lambda name: -(words[name] or 0))[:most])

        def learned() -> list[list[str]]:
            index = Index.build(self._index.pool, Encoder.load(self._encoder), text="both")
            return retrieved("dense", index)()

        yield "learned", learned
        yield "utility", retrieved("utility", model=str(self._encoder))

        def within(ids: Sequence[str]) -> Callable[[], list[list[str]]]:
            pool = self._index.pool
            part = Index.build(pool.take([pool.position(id_) for id_ in ids]), self._index.encoder)
            return retrieved("dense", part)

        n = len(self._ids) // 3
        yield "dense in the longest third", lambda: within(sorted(words, key=lambda name: -(words[name] or 0))[:n])()
        yield "dense in the third by IFD", lambda: within(self._ifd_order(generator)[:n])()
        for number in range(N_RANDOM_THIRDS):
            yield f"dense in random third {number}", within(draw.permutation(self._ids)[:n].tolist())

    def _ifd_order(self, generator: TransformersGenerator) -> list[str]:
        """Demonstrations of an IFD below 1, highest first."""
        scorer = ResponseScorer(Recipe.load("ica"), self._tokenizer, generator)
        work = self._folder / "ifd.jsonl"
        found = measure_scores(self._index.pool, "ifd", scorer, work, {"pool": self._index.pool.fingerprint})
        self._check_time()
        scored = with_scores(self._index.pool, "ifd", found)
        return select(scored, "ifd", len(scored)).ids

    def _greedy(self, generator: TransformersGenerator, gains: Gains) -> list[str]:
        """Add, one at a time, what makes some training answers likeliest, among the best by mean gain."""
        path = self._folder / f"greedy-{self._seed}.json"
        if path.is_file():
            kept: list[str] = json.loads(path.read_text())
            return kept
        pairs = pool_questions(self._index.pool, self._train)
        places = np.random.default_rng(self._seed).permutation(len(pairs))[:GREEDY_QUESTIONS]
        questions = [pairs[place] for place in places]
        own = {question.id for question in questions}
        sieved = [name for name in gains.ranking() if name not in own][:GREEDY_CANDIDATES]
        chosen: list[str] = []
        while len(chosen) < max(SIZES):
            means = {}
            for name in sieved:
                if name not in chosen:
                    asked = [(question, [*chosen, name]) for question in questions]
                    scored = [found for _, found in score_references(self._form, generator, asked)]
                    means[name] = fmean(each.logprob / each.n_tokens for each in scored if isinstance(each, Scored))
                    self._check_time()
            chosen.append(max(means, key=lambda name: means[name]))
        write_json(path, chosen)
        return chosen

    def _score(self, generator: TransformersGenerator, gains: Gains) -> None:
        """Score condition by condition, with none first and the ceiling last."""
        lines = LineFile(self._folder / f"scores-{self._seed}.jsonl", _KEYS)
        done = {(row["condition"], row["question"]) for row in lines.read()}
        tokens = {name: len(self._tokenizer.encode(text)) for name, text in self._texts().items()}
        self._work(generator, lines, done, "none", [[] for _ in self._held_out], tokens)
        for name, find in self._conditions(generator, gains):
            wanted = [
                (size, f"{name} {size}")
                for size in ((3,) if " third" in name else SIZES)
                if any((f"{name} {size}", question.id) not in done for question in self._held_out)
            ]
            chosen = find() if wanted else []
            for size, condition in wanted:
                self._work(generator, lines, done, condition, [ids[:size] for ids in chosen], tokens)
        self._ceiling(generator)

    def _texts(self) -> dict[str, str]:
        template, _ = Recipe.load("ica").make_template()
        return {one.id: template.render_demonstration(one) for one in self._index.pool}

    def _work(
        self,
        generator: TransformersGenerator,
        lines: LineFile,
        done: set[tuple[str, str]],
        condition: str,
        chosen: Sequence[Sequence[str]],
        tokens: dict[str, int],
    ) -> None:
        asked = [
            (question, ids)
            for question, ids in zip(self._held_out, chosen, strict=True)
            if (condition, question.id) not in done
        ]
        for place, found in score_references(self._form, generator, asked):
            question, ids = asked[place]
            if not isinstance(found, Scored):
                raise SystemExit(f"{condition}, {question.id}: {found}")
            row = {"condition": condition, "question": question.id, "logprob": found.logprob}
            lines.append(row | {"n_tokens": found.n_tokens, "shown_tokens": sum(tokens[id_] for id_ in ids)})
            self._check_time()
        if asked:
            print(f"{condition}: {len(asked)} questions", flush=True)

    def _ceiling(self, generator: TransformersGenerator) -> None:
        """All candidates of the held-out questions, so that the best of them by true gain is known."""
        GainRun(
            self._index,
            self._held_out,
            self._folder / "ceiling",
            recipe=Recipe.load("ica"),
            tokenizer=self._tokenizer,
            settings={"model": MODEL},
            options=ScoreOptions(self._candidates, REFERENCE_TOKENS),
        ).run(lambda: generator, on_pairs=lambda _: self._check_time())


def report(folder: Path) -> dict[str, Any]:
    """The figures: nats per token, and paired differences to dense retrieval of the same size."""
    gains = GainFiles(folder / "gains").read()
    seeds = {}
    for path in sorted(folder.glob("scores-*.jsonl")):
        values: dict[str, dict[str, float]] = {}
        shown: dict[str, list[int]] = {}
        for row in LineFile(path, _KEYS).read():
            values.setdefault(row["condition"], {})[row["question"]] = row["logprob"] / row["n_tokens"]
            shown.setdefault(row["condition"], []).append(row["shown_tokens"])
        n = len(values["none"])
        whole = {name: of for name, of in values.items() if len(of) == n}
        seeds[path.stem.removeprefix("scores-")] = {
            name: {
                "log_likelihood": mean(list(of.values())).to_dict(),
                "shown_tokens": round(fmean(shown[name]), 1),
                **_difference(whole, name),
            }
            for name, of in whole.items()
        } | _fixed(whole)
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


def _difference(values: dict[str, dict[str, float]], name: str) -> dict[str, Any]:
    size = name.rpartition(" ")[2]
    dense = values.get(f"dense {size}")
    if dense is None or name == f"dense {size}":
        return {}
    of = values[name]
    ids = sorted(of)
    return {"minus_dense": paired_difference([of[id_] for id_ in ids], [dense[id_] for id_ in ids], ids).to_dict()}


def _fixed(values: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The mean of the fixed sets, question by question."""
    found = {}
    for size in SIZES:
        sets = [values[name] for number in range(FIXED) if (name := f"fixed {number} {size}") in values]
        if len(sets) == FIXED:
            means = {id_: fmean(of[id_] for of in sets) for id_ in sets[0]}
            name = f"fixed (mean of {FIXED}) {size}"
            found[name] = {
                "log_likelihood": mean(list(means.values())).to_dict(),
                **_difference({**values, name: means}, name),
            }
    return found


def _ceiling(folder: Path) -> dict[str, Any] | None:
    """Gains over no demonstration among the held-out questions' candidates, shown alone."""
    try:
        lists = GainFiles(folder / "ceiling").read().by_question()
    except Exception:
        return None
    gains = [[gain.per_token for gain in found] for found in lists.values()]
    return {
        "n": len(gains),
        "best_of_candidates": mean([max(found) for found in gains]).to_dict(),
        "mean_of_candidates": mean([fmean(found) for found in gains]).to_dict(),
        "best_minus_mean": mean([max(found) - fmean(found) for found in gains]).to_dict(),
    }


if __name__ == "__main__":
    sys.exit(main())
