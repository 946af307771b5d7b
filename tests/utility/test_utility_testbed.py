"""On the testbed, where the truth is known: utility recovers what a spoiled encoder has lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ragalign.bench import session
from ragalign.bench.conditions import MAIN
from ragalign.bench.figures import report_of
from ragalign.bench.running import Run
from ragalign.bench.scoring import make_scorer
from ragalign.bench.testbed import World, world_engine
from ragalign.encoders import Encoder
from ragalign.generation import TransformersGenerator
from ragalign.indexes import Index
from ragalign.recipes import RetrieverSettings
from ragalign.utility import Gains, ScoreOptions, TrainOptions, pool_questions, score_gains, train_encoder

pytestmark = pytest.mark.slow
N = 60


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersGenerator]:
    with TransformersGenerator(world_engine().model, dtype="float32", device="cpu", batch_size=16) as generator:
        yield generator


@pytest.fixture(scope="module")
def world(minilm: Encoder) -> World:
    return World.load(first=N, n_topics=N, encoder=minilm)


Gauge = Callable[..., float]


@pytest.fixture
def exact_match(world: World, engine: TransformersGenerator, tmp_path: Path) -> Gauge:
    """Exact match in percent, with nine demonstrations of an index."""

    def measure(name: str, index: Index, retriever: str = "dense", **options: object) -> float:
        [condition] = world.chosen(["retrieved"])
        recipe = replace(condition.recipe, retriever=RetrieverSettings(retriever, options=options))
        run = Run(tmp_path / name, [replace(condition, recipe=recipe)], world.cases, {MAIN: index}, model="testbed")
        assert run.generate(engine, world_engine().load_tokenizer()) == []
        bench = report_of(run, session.score(run, make_scorer("exact-match")), baseline=None).bench
        assert bench is not None
        quality = bench.named("retrieved").quality
        assert quality is not None
        return quality.estimate.value

    return measure


def spoiled_encoder(minilm_folder: Path, out: Path) -> Path:
    """An encoder of random word vectors that lie so close together that all texts look alike."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    torch.manual_seed(0)
    words = StaticEmbedding(Tokenizer.from_file(str(minilm_folder / "tokenizer.json")), embedding_dim=16)
    torch.nn.init.normal_(words.embedding.weight, 1.0, 1e-4)
    SentenceTransformer(modules=[words, Normalize()]).save_pretrained(str(out), create_model_card=False)
    return out


def gains_of(
    world: World, index: Index, engine: TransformersGenerator, folder: Path, n_questions: int, candidates: int
) -> Gains:
    [condition] = world.chosen(["retrieved"])
    files = score_gains(
        index, pool_questions(index.pool, n_questions), engine, folder, tokenizer=world_engine().load_tokenizer(),
        recipe=condition.recipe, options=ScoreOptions(candidates),
    )  # fmt: skip
    return files.read()


def test_it_recovers_what_a_spoiled_encoder_loses(
    world: World, engine: TransformersGenerator, exact_match: Gauge, minilm_folder: Path, tmp_path: Path
) -> None:
    spoiled = spoiled_encoder(minilm_folder, tmp_path / "spoiled")
    index = Index.build(world.indexes[MAIN].pool, Encoder.load(spoiled, cache=None))
    before = exact_match("before", index)
    gains = gains_of(world, index, engine, tmp_path / "gains", 200, 60)
    # All of its weights have to be learned.
    options = TrainOptions(epochs=10, patience=4, learning_rate=0.05, sharpness=6.0, list_size=16)
    train_encoder(gains, tmp_path / "learned", encoder=spoiled, options=options)
    learned = Index.build(index.pool, Encoder.load(tmp_path / "learned", cache=None))
    assert exact_match("after", learned) - before >= 80
    everything = len(index)
    reranked = exact_match("reranked", index, "utility", model=str(tmp_path / "learned"), n_candidates=everything)
    assert reranked - before >= 80


def test_it_is_not_worse_than_a_good_encoder(
    world: World, engine: TransformersGenerator, exact_match: Gauge, minilm_folder: Path, tmp_path: Path
) -> None:
    index = world.indexes[MAIN]
    dense = exact_match("dense", index)
    assert dense == 100
    gains = gains_of(world, index, engine, tmp_path / "gains", 60, 20)
    train_encoder(gains, tmp_path / "learned", encoder=minilm_folder)
    learned = Index.build(index.pool, Encoder.load(tmp_path / "learned", cache=None))
    assert exact_match("learned", learned) >= dense
    assert exact_match("reranked", index, "utility", model=str(tmp_path / "learned")) >= dense
