"""The testbed: a closed world to measure in-context alignment in a minute, without judges or downloads.

The packaged model was pre-trained on synthetic documents in which every topic has its own style, drawn again for each
document, so that a style can only be learnt from demonstrations of the same topic. The right answer to a query is
known, so the metric is exact match. The testbed shows how a pipeline works, and nothing about real models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ragalign.bench.cases import Cases, load_cases
from ragalign.bench.conditions import MAIN, Condition, as_condition
from ragalign.bench.session import Engine
from ragalign.encoders import Encoder
from ragalign.indexes import Index
from ragalign.packing import Packing
from ragalign.pool import Pool
from ragalign.recipes import ConstantSettings, Recipe, RetrieverSettings, TemplateSettings, data_folder
from ragalign.retrieval import RandomRetriever, Retriever
from ragalign.retrieval.batch import QueryBatch
from ragalign.retrieval.ranking import Ranking
from ragalign.reuse.settings import ReuseSettings
from ragalign.types import Decoding, Demonstration

PLANTED = "planted"
"""The index that also holds some of the queries, with wrong answers."""

_MODEL = "the testbed's, 0.87 M parameters, in float32"
# Longer than any answer in this world; answers end at the template's stop string.
_MAX_NEW_TOKENS = 64
_N = 9
_MANY = 10**6  # unlimited: only the number of demonstrations counts
_COUNTS = (1, 2, 3, 5, 16)

REUSED: Mapping[str, str] = MappingProxyType(
    {
        f"reused{name}": "retrieved" + name if name != "-one-of-nine" else "one-of-nine"
        for name in ("", *(f"-{n}" for n in _COUNTS), "-one-of-nine")
    }
)
"""The conditions that reuse keys and values, each with the one that computes the same prompts."""


@dataclass(frozen=True, slots=True)
class World:
    """The packaged world: pool, queries, model, and the index with planted queries.

    Attributes:
        cases: unseen queries with their right answers.
        indexes: of the pool, and of the pool with `PLANTED` queries.
    """

    cases: Cases
    indexes: Mapping[str, Index]

    @classmethod
    def load(cls, *, first: int | None = None, n_topics: int | None = None, encoder: Encoder | None = None) -> World:
        """Load the world and index its pool, which takes some seconds.

        Args:
            first: only the first queries.
            n_topics: of the pool, only the demonstrations of the first queries' topics, for a quick look.
            encoder: of the index; MiniLM by default.
        """
        folder = world_folder()
        cases = replace(load_cases(folder / "queries.jsonl"), name="testbed")
        pool = Pool.load(folder / "pool.jsonl")
        if n_topics is not None:
            topics = {case.query.metadata["topic"] for case in cases.first(n_topics).cases}
            pool = Pool.from_demonstrations(
                demonstration for demonstration in pool if demonstration.metadata["topic"] in topics
            )
        cases = cases.first(first)
        index = Index.build(pool, encoder or Encoder.load(), show_progress=True)
        planted = index.add(Pool.from_demonstrations(_decoys(cases, pool)))
        return cls(cases, {MAIN: index, PLANTED: planted})

    def conditions(self, *, reuse: bool = True) -> list[Condition]:
        """All conditions of the testbed, those that reuse keys and values last.

        Args:
            reuse: whether to include the latter, which need vLLM.
        """
        topics = {case.query.text: str(case.query.metadata["topic"]) for case in self.cases.cases}
        found = [
            _condition("zero-shot", retriever="none"),
            _condition("fixed", retriever="none", constants=3),
            _condition("random", retriever="random"),
            _condition("retrieved", retriever="dense"),
            _condition("bm25", retriever="bm25"),
            _condition("hybrid", retriever="hybrid"),
            _condition("similar-first", retriever="dense", order="most_similar_first"),
            *(_condition(f"retrieved-{n}", retriever="dense", n=n) for n in _COUNTS),
            _condition("planted", retriever="dense", index=PLANTED),
        ]
        control = _condition("one-of-nine", retriever="random", order="random")
        found.append(replace(control, retriever=lambda index: OneAmongOthers(index, topics)))
        return found + ([_reusing(each) for each in found if each.name in REUSED.values()] if reuse else [])

    def chosen(self, names: Sequence[str]) -> list[Condition]:
        """Select conditions by name."""
        return [condition for condition in self.conditions() if condition.name in names]


class OneAmongOthers(Retriever):
    """One demonstration of the query's topic, drawn at random, and the others from other topics.

    This control distinguishes looking up a topic from copying what most demonstrations do.
    """

    name: ClassVar[str] = "one-among-others"

    def __init__(self, index: Index, topics: Mapping[str, str]) -> None:
        super().__init__(index.pool, index)
        self._topics = topics
        self._random = RandomRetriever(index)

    def rank(self, batch: QueryBatch, k: int) -> Ranking:
        """See `Retriever.rank`."""
        of = np.array([demonstration.metadata.get("topic") for demonstration in self.pool], dtype=object)

        def draw(rows: NDArray[np.int64], depth: int) -> Ranking:
            out = Ranking.empty(len(rows), depth)
            shuffled = self._random.rank(QueryBatch([batch.texts[row] for row in rows], len(self.pool)), len(self.pool))
            for i, row in enumerate(rows):
                order = shuffled.positions[i]
                same = of[order] == self._topics[batch.texts[row]]
                chosen = np.concatenate([order[same][:1], order[~same]])[:depth]
                out.positions[i, : len(chosen)] = chosen
                out.scores[i, : len(chosen)] = -np.arange(len(chosen), dtype=np.float64)
            return out

        return batch.survivors(k, draw)


def world_folder() -> Path:
    """The folder of the packaged world."""
    return data_folder() / "testbed"


def world_engine(backend: str = "auto") -> Engine:
    """The packaged model, in float32, so that answers do not depend on rounding."""
    return Engine(str(world_folder() / "model"), backend=backend, options={"dtype": "float32"}, name=_MODEL)


def _condition(
    name: str,
    *,
    retriever: str,
    n: int = _N,
    order: str = "most_similar_last",
    constants: int = 0,
    index: str = MAIN,
) -> Condition:
    settings = ConstantSettings()
    if constants:
        settings = ConstantSettings(kind="random", pool="package:testbed/pool.jsonl", n=constants)
    recipe = Recipe(
        name,
        template=TemplateSettings(form="package:testbed/template.toml"),
        constants=settings,
        retriever=RetrieverSettings(name=retriever),
        packing=Packing(max_demonstrations=n, max_tokens=_MANY, max_demonstration_tokens=_MANY, order=order),  # type: ignore[arg-type]
        decoding=Decoding(temperature=0.0, max_tokens=_MAX_NEW_TOKENS, seed=0),
    )
    return as_condition(recipe, index=index)


def _reusing(condition: Condition) -> Condition:
    """The condition with its demonstrations' keys and values reused."""
    [name] = [name for name, plain in REUSED.items() if plain == condition.name]
    recipe = replace(condition.recipe, name=name, reuse=ReuseSettings(enabled=True, memory="1 GiB"))
    return replace(condition, name=name, recipe=recipe)


def _decoys(cases: Cases, pool: Pool) -> Iterator[Demonstration]:
    """Every query, in spellings that count as the same text, each with an answer in another topic's style.

    The style is taken over from a demonstration of the next query's topic, so the answer reads like one about the
    query's own topic. Where exclusion leaks, these are the most similar demonstrations, and they mislead.
    """
    shown = {str(demonstration.metadata["topic"]): demonstration for demonstration in pool}
    topics = [str(case.query.metadata["topic"]) for case in cases.cases]
    for case, topic, other in zip(cases.cases, topics, [*topics[1:], "".join(topics[:1])], strict=True):
        wrong = _renamed(shown[other].response, other, topic, case.references[0][0])
        for text in (case.query.text, case.query.text.lower(), case.query.text.replace(" ", "  ")):
            yield Demonstration(text, wrong, source=PLANTED, metadata={"topic": topic})


def _renamed(answer: str, old: str, new: str, reference: str) -> str:
    """Move an answer to another topic; answers begin with their topic's plural."""
    plurals = answer.split()[0].lower(), reference.split()[0].lower()
    for before, after in (plurals, (old, new)):
        answer = answer.replace(before.capitalize(), after.capitalize()).replace(before, after)
    return answer
