"""The run: each cell is trained if needed, answers all prompts, and is saved. Resumable at every cell."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ragalign._optional import is_installed, require
from ragalign._parsing import parse_json
from ragalign._progress import progress
from ragalign.aligner import Aligner
from ragalign.bench.cases import Case, Cases
from ragalign.bench.likelihood import measure_likelihoods
from ragalign.bench.measuring import UnscoredError
from ragalign.bench.scoring import make_scorer
from ragalign.completions import index_settings, query_fingerprint
from ragalign.constants import as_constants
from ragalign.errors import BudgetError, DataError
from ragalign.generation import make_generator
from ragalign.generator import Generator
from ragalign.indexes import Index
from ragalign.packing import Packer
from ragalign.pool import Pool
from ragalign.pool.wrappers import question_key
from ragalign.recipes import Recipe
from ragalign.retrieval import DenseRetriever, Exclusion, Retriever, make_retriever
from ragalign.runs import RunFolder, fingerprint, write_json, write_lines
from ragalign.studies.fine_tuning.cells import TUNED, Cell, drawn, plan
from ragalign.studies.fine_tuning.training import Training, fine_tune
from ragalign.tokenization import Tokenizer
from ragalign.types import Completion, Query


@dataclass(frozen=True, slots=True)
class FineTuningSettings:
    """Settings of the comparison.

    Attributes:
        base: folder or hub id of the base model.
        recipe: the template of prompts and training data, packing, retriever and decoding.
        methods, sizes, seeds: see `cells.plan`.
        metric: see `ragalign.bench.scoring.make_scorer`.
        training: see `Training`.
        max_tokens: maximum tokens per answer.
        backend, options: see `ragalign.generation.make_generator`.
        keep_models: keep the fine-tuned models.
    """

    base: str
    recipe: str
    methods: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: int = 3
    metric: str = "exact-match"
    training: Training = field(default_factory=Training)
    max_tokens: int | None = None
    backend: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_models: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a cell.

    Attributes:
        cell: the cell.
        scores: scores by query id; None without an answer or a score.
        answer_s: seconds per answer, including retrieval and packing, with all prompts in one call.
        prompt_tokens, output_tokens, demonstrations: means per answer.
        training: the values of `Cost`; None without training.
        failures: why there is no answer or no score, by query id.
    """

    cell: Cell
    scores: Mapping[str, float | None]
    answer_s: float
    prompt_tokens: float
    output_tokens: float
    demonstrations: float
    training: Mapping[str, Any] | None
    failures: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """Create a result from the values of `to_dict`."""
        return cls(**{**values, "cell": Cell(**values["cell"])})


def run(settings: FineTuningSettings, index: Index, queries: Sequence[Query], folder: str | Path) -> list[Result]:
    """Run all cells in a folder, or the missing ones of an interrupted run.

    Demonstrations with a question of the queries are removed from the pool first.

    Answers are written to ``answers/CELL.jsonl``, in the format of `ragalign judge run`; scores and costs to
    ``cells/CELL.json``.

    Raises:
        ConfigError: a setting is invalid, or the folder has another run.
        GenerationError: a model could not be loaded or failed; finished cells are kept.
        MissingDependencyError: trl or peft is missing for fine-tuning.
    """
    return _Run(settings, index, queries, Path(folder)).all()


class _Run:
    def __init__(self, settings: FineTuningSettings, index: Index, queries: Sequence[Query], folder: Path) -> None:
        # The queries must be neither shown nor trained on.
        asked = {question_key(text) for query in queries for text in query.own_texts}
        known = [demonstration.id for demonstration in index.pool if question_key(demonstration.instruction) in asked]
        index = index.remove(known) if known else index
        self.settings = settings
        self.index = index
        self.queries = queries
        self.folder = folder
        self.cells = plan(settings.methods, settings.sizes, settings.seeds, index.pool)
        if any(cell.method in TUNED for cell in self.cells):
            for package in ("trl", "peft"):  # report missing packages before any cell runs
                if not is_installed(package):
                    require(package, "fine-tuning")
        self.scorer = make_scorer(settings.metric)
        self.recipe = Recipe.load(settings.recipe)
        self.template, _ = self.recipe.make_template()
        self.tokenizer = Tokenizer.load(settings.base)
        self.decoding = self.recipe.decoding
        if settings.max_tokens is not None:
            self.decoding = replace(self.decoding, max_tokens=settings.max_tokens)
        self._run = RunFolder(folder)
        self._run.claim(_identity(settings, index, queries))

    def all(self) -> list[Result]:
        with self._run.writing():
            for name in ("cells", "answers", "models"):
                (self.folder / name).mkdir(exist_ok=True)
            return self._all()

    def _all(self) -> list[Result]:
        missing = [cell for cell in self.cells if not self._path(cell).exists()]
        in_context = [cell for cell in missing if cell.method not in TUNED]
        with progress("cells", len(missing), "cells") as advance:
            if in_context:
                with closing(self._generator(self.settings.base)) as generator:
                    for cell in in_context:
                        self._answer(cell, generator, None)
                        advance(1)
            for cell in missing:
                if cell.method in TUNED:
                    self._tuned(cell)
                    advance(1)
        return [self._load(cell) for cell in self.cells]

    def _tuned(self, cell: Cell) -> None:
        model = self.folder / "models" / cell.name
        record = self.folder / "models" / f"{cell.name}.json"
        if not record.exists():
            shutil.rmtree(model, ignore_errors=True)
            pool = self.index.pool.take(drawn(self.index.pool, cell))
            kind: Any = cell.method
            packer = self._packer(None)
            cost = fine_tune(
                self.settings.base, kind, packer, list(pool), model, self.settings.training, seed=cell.seed or 0
            )
            write_json(record, asdict(cost))
        cost_values = parse_json(record.read_text(encoding="utf-8"))
        with closing(self._generator(str(model))) as generator:
            self._answer(cell, generator, cost_values)
        if not self.settings.keep_models:
            shutil.rmtree(model)
            record.unlink()

    def _answer(self, cell: Cell, generator: Generator, training: Mapping[str, Any] | None) -> None:
        aligner = self._aligner(cell, generator)
        if training is None:
            # The first prompt pays for the engine's one-time setup.
            aligner.generate([self.queries[0]], decoding=replace(self.decoding, max_tokens=1))
        start = time.perf_counter()
        packed = aligner.pack_many(self.queries, decoding=self.decoding)
        prompts = [prompt for prompt in packed if not isinstance(prompt, BudgetError)]
        completions = iter(generator.generate(prompts, self.decoding))
        seconds = time.perf_counter() - start
        likelihoods = self._likelihoods(aligner)
        rows, sizes = [], []
        scores: dict[str, float | None] = {}
        failures: dict[str, str] = {}
        for query, prompt in zip(self.queries, packed, strict=True):
            if isinstance(prompt, BudgetError):
                scores[query.id], failures[query.id] = None, str(prompt)
                continue
            completion = next(completions)
            text = self.template.clean(completion.text, finished=completion.finish_reason != "length")
            try:
                record = _record(query, text, completion, cell) | likelihoods.get(query.id, {})
                scores[query.id] = self.scorer.score(record)
            except UnscoredError as error:
                scores[query.id], failures[query.id] = None, str(error)
            rows.append({"id": query.id, "instruction": query.text, "response": text, "generator": cell.name})
            sizes.append((completion.n_prompt_tokens, completion.n_output_tokens, len(prompt.demonstrations)))
        answers = self.folder / "answers" / f"{cell.name}.jsonl"
        write_lines(answers, rows)
        means = [sum(column) / len(sizes) for column in zip(*sizes, strict=True)] if sizes else [0.0] * 3
        result = Result(cell, scores, seconds / max(1, len(sizes)), means[0], means[1], means[2], training, failures)
        write_json(self._path(cell), result.to_dict())

    def _likelihoods(self, aligner: Aligner) -> dict[str, dict[str, Any]]:
        """Record fields with the likelihood of the references, by query id, if the metric needs it."""
        if not self.scorer.needs_likelihoods:
            return {}
        cases = Cases("", tuple(Case(query, references=(tuple(references(query)),)) for query in self.queries))
        return {row["id"]: {"reference_likelihood": row} for row in measure_likelihoods(aligner, cases)}

    def _aligner(self, cell: Cell, generator: Generator) -> Aligner:
        retriever: Retriever | None = None
        pool, constants = self.index.pool, None
        if cell.n is not None and cell.method in ("constant", "retrieved"):
            pool = pool.take(drawn(pool, cell))
        if cell.method == "constant":
            constants = pool
        elif cell.method == "retrieved":
            kept = set(pool.ids)
            retriever = self._retriever(self.index.remove(id_ for id_ in self.index.pool.ids if id_ not in kept))
        elif cell.method == "retrieved-pool":
            retriever = self._retriever(self.index)
        settings = self.recipe.retriever
        return Aligner(
            self._packer(generator.context_length, retriever.pool if retriever else None, constants),
            retriever,
            generator,
            decoding=self.decoding,
            candidates=settings.candidates,
            exclude=Exclusion(same_text=settings.exclude_same_text, near=settings.exclude_near),
            where=settings.where,
            name=cell.name,
        )

    def _retriever(self, index: Index) -> Retriever:
        settings = self.recipe.retriever
        if settings.name == "none":
            return DenseRetriever(index)
        return make_retriever(settings.name, index, **settings.options)

    def _packer(self, context_length: int | None, pool: Pool | None = None, constants: Pool | None = None) -> Packer:
        with warnings.catch_warnings():
            # The number of constants that fit is part of the results.
            warnings.filterwarnings("ignore", message="only the first")
            return Packer(
                self.template,
                self.tokenizer,
                pool if pool is not None else Pool.from_demonstrations([]),
                packing=self.recipe.packing,
                constants=as_constants(self.template, list(constants)) if constants is not None else (),
                context_length=context_length,
            )

    def _generator(self, model: str) -> Generator:
        return make_generator(self.settings.backend, model=model, **self.settings.options)

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"

    def _load(self, cell: Cell) -> Result:
        try:
            return Result.from_dict(parse_json(self._path(cell).read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{self._path(cell)}: {error}; delete the file to run the cell again") from None


def references(query: Query) -> list[str]:
    """The right answers that a query's row gives as ``reference``: a text, or a list of them."""
    found = query.metadata.get("reference")
    return (
        [found]
        if isinstance(found, str)
        else [str(reference) for reference in found]
        if isinstance(found, list)
        else []
    )


def _record(query: Query, response: str, completion: Completion, cell: Cell) -> dict[str, Any]:
    """The record for a metric, as in `ragalign.bench.scoring.records`."""
    return {
        "id": query.id,
        "instruction": query.text,
        "messages": [{"role": turn.role, "content": turn.content} for turn in query.turns],
        "response": response,
        "references": references(query),
        "finish_reason": completion.finish_reason,
        "demonstrations": [used.id for used in completion.prompt.demonstrations],
        "recipe": cell.name,
        "turn": 1,
        "category": query.metadata.get("category"),
        "metadata": dict(query.metadata),
    }


def _identity(settings: FineTuningSettings, index: Index, queries: Sequence[Query]) -> dict[str, Any]:
    """The settings that must not change when a run is resumed; methods, sizes and seeds can be added."""
    recipe = Recipe.load(settings.recipe)
    return {
        "base": settings.base,
        "metric": settings.metric,
        "max_tokens": settings.max_tokens,
        "recipe": {"name": recipe.name, **recipe.content()},
        "training": asdict(settings.training),
        "index": index_settings(index),
        "queries": fingerprint([[query.id, query_fingerprint(query), references(query)] for query in queries]),
    }
