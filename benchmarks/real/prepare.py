"""Retrieve and pack: every prompt of `results_real.py` as token ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ragalign.aligner import Aligner
from ragalign.encoders import Encoder
from ragalign.errors import BudgetError
from ragalign.indexes import Index
from ragalign.measures.instructions import InstructionPrompt
from ragalign.measures.likelihood import continuation
from ragalign.packing import Packing
from ragalign.pool import Pool
from ragalign.recipes import Recipe, RetrieverSettings, TemplateSettings
from ragalign.retrieval import Exclusion, make_retriever
from ragalign.reuse.settings import ReuseSettings
from ragalign.tokenization import Tokenizer
from ragalign.types import Prompt, Query, Turn
from real import jobs
from real.jobs import Group, Job, PieceStore

MODEL = "packaged:gemma-3-270m"
CONTEXT = 32_768
N_QUESTIONS, N_DECODING, N_MANY_SHOT = 150, 50, 30
MANY_SHOT = (1, 3, 9, 30, 100)
MANY_SHOT_TOKENS = 30_000
FIXED_SEEDS = range(5)
ALPACA_TOKENS, IFEVAL_TOKENS = 256, 512
PENALTIES: dict[str, dict[str, float]] = {
    "none": {},
    "prompt and output": {"repetition_penalty": 1.1},
    "output": {"output_repetition_penalty": 1.1},
}
_SEED = 0


@dataclass(frozen=True)
class Question:
    """A question with what its answers are measured by."""

    id: str
    text: str
    category: str
    references: tuple[str, ...] = ()

    @property
    def query(self) -> Query:
        """As retrieval takes it."""
        return Query(self.id, (Turn("user", self.text),))


def prepare(data: Path, folder: Path, *, first: int | None = None) -> None:
    """Write pieces, jobs and questions into a folder.

    Args:
        data: the folder with AlpacaEval's, IFEval's and LIMA's files.
        folder: where to write.
        first: so many questions of each part only, for a trial.
    """
    tokenizer = Tokenizer.load(MODEL)
    index = Index.build(Pool.load(data / "pools" / "lima_1k.jsonl"), Encoder.load())
    alpaca, ifeval = _drawn(_alpaca(data), first), _drawn(_ifeval(data), first)
    packers = _Packers(index, tokenizer)
    pieces = PieceStore()
    groups = [
        *_main(packers, pieces, alpaca, ifeval),
        *_decoding(packers, pieces, ifeval[:N_DECODING]),
        _many_shot(packers, pieces, alpaca[:N_MANY_SHOT]),
    ]
    settings = {
        "model": MODEL,
        "context": CONTEXT,
        "pool": {"name": "LIMA", "n": len(index), "fingerprint": index.pool.fingerprint},
        "encoder": index.encoder.id,
        "first": first,
        "conditions": packers.facts,
    }
    jobs.save(folder, pieces, groups, settings)
    nearest = make_retriever("dense", index).retrieve(
        [question.query for question in (*alpaca, *ifeval)], 1, exclude=Exclusion(same_text=True)
    )
    rows = [
        {
            "id": question.id,
            "text": question.text,
            "category": question.category,
            "references": question.references,
            "nearest": round(hits[0].score, 4),
            "nearest_instruction": index.pool.get(hits[0].id).instruction,
        }
        for question, hits in zip((*alpaca, *ifeval), nearest, strict=True)
    ]
    (folder / "questions.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


class _Packers:
    """Packs questions under conditions, and remembers what each condition's prompts hold."""

    def __init__(self, index: Index, tokenizer: Tokenizer) -> None:
        self._index, self._tokenizer = index, tokenizer
        self.facts: dict[str, dict[str, float]] = {}

    def aligner(self, recipe: Recipe) -> Aligner:
        return Aligner.from_recipe(recipe, index=self._index, tokenizer=self._tokenizer, context_length=CONTEXT)

    def drawn(self, seed: int) -> list[str]:
        """The pool's ids in an order drawn with a seed."""
        return [self._index.pool.ids[row] for row in np.random.default_rng(seed).permutation(len(self._index.pool))]

    def pack(self, part: str, aligner: Aligner, questions: Sequence[Question]) -> Iterator[tuple[Question, Prompt]]:
        prompts = aligner.pack_many([question.query for question in questions])
        packed = [
            (question, prompt)
            for question, prompt in zip(questions, prompts, strict=True)
            if isinstance(prompt, Prompt)
        ]
        lost = len(questions) - len(packed)
        if lost:
            reason = next(prompt for prompt in prompts if isinstance(prompt, BudgetError))
            print(f"{part}, {aligner.name}: {lost} questions do not fit, such as: {reason}")
        self.facts[f"{part}/{aligner.name}"] = {
            "demonstrations": round(float(np.mean([len(prompt.demonstrations) for _, prompt in packed])), 2),
            "prompt_tokens": round(float(np.mean([prompt.n_tokens for _, prompt in packed])), 1),
        }
        yield from packed


def _main(
    packers: _Packers, pieces: PieceStore, alpaca: Sequence[Question], ifeval: Sequence[Question]
) -> Iterator[Group]:
    aligners = [packers.aligner(recipe) for recipe in _recipes(packers)]
    likely = Group("alpaca-likelihood", "alpaca-likelihood")
    greedy = {"temperature": 0.0, "max_tokens": ALPACA_TOKENS}
    answered = Group("alpaca-answers", "alpaca-answers", greedy)
    checked = Group("ifeval-answers", "ifeval-answers", greedy | {"max_tokens": IFEVAL_TOKENS})
    for aligner in aligners:
        for question, prompt in packers.pack("alpaca", aligner, alpaca):
            numbers = _cut(prompt, pieces)
            likely.jobs.append(_likelihood(aligner, question, prompt, numbers, pieces))
            answered.jobs.append(Job(aligner.name, question.id, numbers))
            answered.stop = prompt.stop
        for question, prompt in packers.pack("ifeval", aligner, ifeval):
            checked.jobs.append(Job(aligner.name, question.id, _cut(prompt, pieces)))
            checked.stop = prompt.stop
    for group, questions in ((likely, alpaca), (answered, alpaca), (checked, ifeval)):
        yield _by_question(group, questions)


def _decoding(packers: _Packers, pieces: PieceStore, questions: Sequence[Question]) -> Iterator[Group]:
    aligner = packers.aligner(
        Recipe(
            "ica-9",
            template=TemplateSettings("ica"),
            retriever=RetrieverSettings("dense"),
            packing=Packing(9),
        )
    )
    packed = list(packers.pack("decoding", aligner, questions))
    asked = [(question, _cut(prompt, pieces)) for question, prompt in packed]
    for temperature in (0.0, 0.7):
        for penalty, fields in PENALTIES.items():
            condition = f"temperature {temperature:g}, penalty {penalty}"
            yield Group(
                condition,
                "decoding",
                {"temperature": temperature, "max_tokens": IFEVAL_TOKENS, **fields},
                packed[0][1].stop,
                [Job(condition, question.id, numbers) for question, numbers in asked],
            )


def _many_shot(packers: _Packers, pieces: PieceStore, questions: Sequence[Question]) -> Group:
    group = Group("many-shot", "many-shot")
    retrievers = {
        "fixed": RetrieverSettings("fixed", options={"ids": packers.drawn(_SEED)}),
        "retrieved": RetrieverSettings("dense"),
    }
    for kind, retriever in retrievers.items():
        for n in MANY_SHOT:
            packing = Packing(n, max_tokens=MANY_SHOT_TOKENS)
            aligner = packers.aligner(_recipe(f"{kind} {n}", retriever, packing))
            for question, prompt in packers.pack("many-shot", aligner, questions):
                job = _likelihood(aligner, question, prompt, _cut(prompt, pieces), pieces)
                if pieces.size([*job.pieces, job.reference or 0]) < CONTEXT:
                    group.jobs.append(job)
    return _by_question(group, questions)


def _recipes(packers: _Packers) -> Iterator[Recipe]:
    """The conditions: all have the same form and system prompt, so that only demonstrations differ."""
    yield _recipe("zero-shot", RetrieverSettings("none"), Packing())
    yield _recipe("retrieved 9", RetrieverSettings("dense"), Packing(9))
    for seed in FIXED_SEEDS:
        yield _recipe(f"fixed {seed}", RetrieverSettings("fixed", options={"ids": packers.drawn(seed)}), Packing(9))
    yield _recipe("random", RetrieverSettings("random", options={"seed": _SEED}), Packing(9))
    for n in (1, 3):
        yield _recipe(f"retrieved {n}", RetrieverSettings("dense"), Packing(n))
    yield replace(Recipe.load("hybrid"), name="hybrid")
    # Kept keys and values need an engine that puts them in place; full attention reads the same text.
    yield replace(Recipe.load("reuse"), name="reuse", reuse=ReuseSettings())


def _recipe(name: str, retriever: RetrieverSettings, packing: Packing) -> Recipe:
    template = TemplateSettings("urial", system_file="package:system_prompt.txt")
    return Recipe(name, template=template, retriever=retriever, packing=packing)


def _likelihood(
    aligner: Aligner, question: Question, prompt: Prompt, numbers: tuple[int, ...], pieces: PieceStore
) -> Job:
    packer = aligner.packer
    ids = continuation(prompt, question.references[0], packer.template, packer.tokenizer)
    return Job(aligner.name, question.id, numbers, pieces.add(ids))


def _cut(prompt: Prompt, pieces: PieceStore) -> tuple[int, ...]:
    """A prompt as numbers of pieces, cut where its demonstrations begin and end."""
    edges = {0, len(prompt.ids)}
    edges |= {edge for used in prompt.demonstrations for edge in (used.span.start, used.span.stop)}
    ordered = sorted(edges)
    return tuple(pieces.add(prompt.ids[a:b]) for a, b in pairwise(ordered))


def _by_question(group: Group, questions: Sequence[Question]) -> Group:
    """All conditions of a question one after another, so that what is finished early is comparable."""
    places = {question.id: place for place, question in enumerate(questions)}
    group.jobs.sort(key=lambda job: places[job.question])
    return group


def _drawn(questions: list[Question], first: int | None) -> list[Question]:
    order = np.random.default_rng(_SEED).permutation(len(questions))
    return [questions[row] for row in order[: N_QUESTIONS if first is None else first]]


def _alpaca(data: Path) -> list[Question]:
    path = data / "alpaca_eval" / "v2" / "gpt4_1106_preview.model_outputs.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return [
        Question(f"alpaca-{number}", row["instruction"], row["dataset"], (row["output"],))
        for number, row in enumerate(rows)
    ]


def _ifeval(data: Path) -> list[Question]:
    path = data / "ifeval" / "ifeval_prompts.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = []
    for row in rows:
        prompt = InstructionPrompt.from_row(row)
        kinds = sorted({name.partition(":")[0] for name in prompt.instructions})
        found.append(Question(f"ifeval-{prompt.id}", prompt.text, kinds[0] if len(kinds) == 1 else "several kinds"))
    return found
