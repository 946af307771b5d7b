"""One seed of `selection.py`: score gains, train an encoder, and score held-out questions under all conditions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ragalign.encoders import Encoder
from ragalign.generation import TransformersGenerator
from ragalign.indexes import Index
from ragalign.recipes import Recipe
from ragalign.retrieval import Exclusion, make_retriever
from ragalign.runs import LineFile, machine_facts, write_json
from ragalign.tokenization import Tokenizer
from ragalign.types import Query, Turn
from ragalign.utility import (
    AnsweredQuestion,
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
REFERENCE_TOKENS = 32
SIZES = (1, 3, 9)
FIXED = 5
KEYS = ("condition", "question", "logprob")
_N_RANDOM_THIRDS = 3
_THIRDS_SIZES = (3,)
_TOKEN_COST = 0.0001
# Questions that are scored under all conditions before the next ones.
_ROUND = 50
_GREEDY_CANDIDATES, _GREEDY_QUESTIONS = 12, 24


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
    ) -> Iterator[tuple[str, bool, Sequence[int], Callable[[], list[list[str]]]]]:
        """Names, whether the seed matters, sizes, and for each held-out question its demonstrations, best first."""
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

        yield "dense", False, SIZES, retrieved("dense")
        yield "bm25", False, SIZES, retrieved("bm25")
        yield "mmr", False, SIZES, retrieved("mmr")
        yield "hybrid", False, SIZES, retrieved("hybrid")
        yield "random", True, SIZES, retrieved("random", seed=self._seed)
        draw = np.random.default_rng(self._seed + 100)
        for number in range(FIXED):
            yield f"fixed {number}", True, SIZES, constant(draw.permutation(self._ids)[:most].tolist())
        yield "best-fixed", False, SIZES, constant(gains.ranking()[:most])
        yield "greedy-fixed", True, SIZES, lambda: [self._greedy(generator, gains)] * len(queries)
        words = lengths(self._index.pool, self._tokenizer)
        longest = sorted(words, key=lambda name: -(words[name] or 0))
        yield "longest", False, SIZES, constant(longest[:most])

        def learned() -> list[list[str]]:
            index = Index.build(self._index.pool, Encoder.load(self._encoder), text="both")
            return retrieved("dense", index)()

        yield "learned", True, SIZES, learned
        yield "utility", True, SIZES, retrieved("utility", model=str(self._encoder))
        stopping = retrieved("utility", model=str(self._encoder), token_cost=_TOKEN_COST)
        yield "utility, stopping at", True, SIZES[-1:], stopping

        def within(ids: Sequence[str]) -> Callable[[], list[list[str]]]:
            pool = self._index.pool
            part = Index.build(pool.take([pool.position(id_) for id_ in ids]), self._index.encoder)
            return retrieved("dense", part)

        n = len(self._ids) // 3
        yield "dense in the longest third", False, _THIRDS_SIZES, lambda: within(longest[:n])()
        yield "dense in the third by IFD", False, _THIRDS_SIZES, lambda: within(self._ifd_order(generator)[:n])()
        for number in range(_N_RANDOM_THIRDS):
            yield (
                f"dense in random third {number}",
                True,
                _THIRDS_SIZES,
                within(draw.permutation(self._ids)[:n].tolist()),
            )

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
        places = np.random.default_rng(self._seed).permutation(len(pairs))[:_GREEDY_QUESTIONS]
        questions = [pairs[place] for place in places]
        own = {question.id for question in questions}
        sieved = [name for name in gains.ranking() if name not in own][:_GREEDY_CANDIDATES]
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
        """Score some questions under all conditions, then the next ones; the ceiling comes last."""
        seeded, shared = (LineFile(self._folder / f"scores-{name}.jsonl", KEYS) for name in (self._seed, "shared"))
        done = {(row["condition"], row["question"]) for lines in (seeded, shared) for row in lines.read()}
        tokens = {name: len(self._tokenizer.encode(text)) for name, text in self._texts().items()}
        wanted: list[tuple[str, LineFile, list[list[str]]]] = [("none", shared, [[] for _ in self._held_out])]
        for name, drawn, sizes, find in self._conditions(generator, gains):
            chosen = find()
            lines = seeded if drawn else shared
            wanted += [(f"{name} {size}", lines, [ids[:size] for ids in chosen]) for size in sizes]
        for first in range(0, len(self._held_out), _ROUND):
            questions = self._held_out[first : first + _ROUND]
            for condition, lines, chosen in wanted:
                asked = [
                    (question, ids)
                    for question, ids in zip(questions, chosen[first : first + _ROUND], strict=True)
                    if (condition, question.id) not in done
                ]
                self._work(generator, lines, condition, asked, tokens)
        self._ceiling(generator)

    def _texts(self) -> dict[str, str]:
        template, _ = Recipe.load("ica").make_template()
        return {one.id: template.render_demonstration(one) for one in self._index.pool}

    def _work(
        self,
        generator: TransformersGenerator,
        lines: LineFile,
        condition: str,
        asked: Sequence[tuple[AnsweredQuestion, Sequence[str]]],
        tokens: dict[str, int],
    ) -> None:
        for place, found in score_references(self._form, generator, asked):
            question, ids = asked[place]
            if not isinstance(found, Scored):
                raise SystemExit(f"{condition}, {question.id}: {found}")
            row = {"condition": condition, "question": question.id, "logprob": found.logprob}
            lines.append(row | {"n_tokens": found.n_tokens, "shown_tokens": sum(tokens[id_] for id_ in ids)})
            self._check_time()
        if asked:
            print(f"{condition}: {asked[0][0].id} and {len(asked) - 1} more", flush=True)

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
