"""Training recovers a preference that was planted in the gains, and its result is an encoder like any other."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path

import numpy as np
import pytest

from ragalign.encoders import Encoder
from ragalign.errors import ConfigError, DataError
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.retrieval import UtilityRetriever, make_retriever
from ragalign.types import Demonstration
from ragalign.utility import Gain, Gains, Trained, TrainOptions, train_encoder
from ragalign.utility.held_out import evaluate

ANIMALS = ("otter", "badger", "beaver", "falcon", "raven", "pigeon", "parrot", "penguin")
TASKS = ("price", "colour", "origin", "history", "weight", "shape")


def planted(seed: int = 0) -> Gains:
    """Demonstrations help where they ask for the same thing, whatever it is asked about: topics mislead."""
    draw = random.Random(seed)
    demonstrations = [
        Demonstration(f"What is the {task} of the {animal}?", f"The {animal}: {task}.")
        for animal in ANIMALS
        for task in TASKS
    ]
    gains, questions = [], {}
    for number in range(30):
        animal, task = draw.choice(ANIMALS), draw.choice(TASKS)
        questions[f"q{number}"] = f"Tell me about the {task} of a {animal}."
        for one in draw.sample(demonstrations, 12):
            gain = 5.0 if f" {task} " in one.instruction else draw.uniform(-0.5, 0.5)
            gains.append(Gain(f"q{number}", one.id, gain, 10))
    return Gains(tuple(gains), questions, {one.id: one for one in demonstrations}, {"text": "instruction"})


@pytest.fixture(scope="module")
def trained(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it used the network"))
        return train_encoder(
            planted(), tmp_path_factory.mktemp("encoders") / "useful", encoder=minilm_folder,
            options=TrainOptions(epochs=2, lists=1, list_size=6, batch_size=4, learning_rate=2e-4),
        )  # fmt: skip


@pytest.mark.slow
def test_it_learns_what_helps(trained: Trained) -> None:
    assert trained.before.n == trained.after.n == 6
    assert trained.epochs > 0
    assert trained.after.correlation > trained.before.correlation + 0.1
    assert trained.after.chosen > trained.before.mean
    assert trained.after.chosen == pytest.approx(trained.after.best, abs=0.1)
    # Questions of another draw, too.
    fresh = planted(seed=1)
    found = evaluate(Encoder.load(trained.folder, cache=None), fresh, fresh.by_question(), "instruction")
    assert found.chosen > found.mean + 0.8 * (found.best - found.mean)


@pytest.mark.slow
def test_the_result_is_an_encoder_folder_with_a_card(trained: Trained, tmp_path: Path) -> None:
    card = (trained.folder / "README.md").read_text()
    assert "288 measured gains of 24 questions; 6 other questions were held out" in card
    assert str(trained.folder.parent) not in card
    pool = Pool.from_demonstrations(planted().demonstrations.values())
    Index.build(pool, Encoder.load(trained.folder, cache=None)).save(tmp_path / "index")
    index = Index.open(tmp_path / "index")
    found = make_retriever("utility", index).retrieve(["Tell me about the weight of a raven."], 8)[0]
    assert all(" weight " in pool.get(hit.id).instruction for hit in found)
    assert json.loads((trained.folder / "utility.json").read_text())["text"] == "instruction"
    # Its own neighbours are the useful ones already.
    dense = make_retriever("dense", index).retrieve(["Tell me about the weight of a raven."], 8)[0]
    assert [hit.id for hit in dense] == [hit.id for hit in found]


@pytest.mark.slow
def test_it_reranks_the_neighbours_of_another_encoder(trained: Trained, minilm: Encoder) -> None:
    index = Index.build(Pool.from_demonstrations(planted().demonstrations.values()), minilm)
    asked = ["Tell me about the shape of a penguin.", "Tell me about the price of a beaver."]
    dense = make_retriever("dense", index).retrieve(asked, 8)
    found = make_retriever("utility", index, model=str(trained.folder)).retrieve(asked, 8)
    for task, near, useful in zip((" shape ", " price "), dense, found, strict=True):
        n_near, n_useful = (sum(task in index.pool.get(hit.id).instruction for hit in hits) for hits in (near, useful))
        assert n_useful == 8 > n_near
        assert [hit.score for hit in useful] == sorted((hit.score for hit in useful), reverse=True)
    # The gain of those that help is 0.5 nats per token, and of the others 0.
    assert found[0][0].score == pytest.approx(0.5, abs=0.2)


@pytest.mark.slow
def test_a_set_stops_when_the_next_costs_more_than_it_adds(
    trained: Trained, minilm: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    index = Index.build(Pool.from_demonstrations(planted().demonstrations.values()), minilm)
    asked = ["Tell me about the shape of a penguin."]
    sizes = []
    for cost in (0.0, 0.0005, 0.005, 10.0):
        retriever = UtilityRetriever(index, model=trained.folder, token_cost=cost)
        [hits] = retriever.retrieve(asked, 16)
        sizes.append(len(hits))
        chosen = [index.pool.get(hit.id) for hit in hits]
        n_tokens = [1.3 * (len(one.instruction.split()) + len(one.response.split())) for one in chosen]
        assert all(hit.score > cost * n for hit, n in zip(hits, n_tokens, strict=True))
        if hits:
            assert " shape " in chosen[0].instruction
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2]
    assert sizes[-1] == 0
    assert caplog.messages == [
        "utility: 1 of 1 questions have no hit: no demonstration is predicted to gain more than its tokens cost"
    ]


def test_an_encoder_without_gains_is_refused(minilm: Encoder, minilm_folder: Path, tmp_path: Path) -> None:
    index = Index.build(Pool.from_demonstrations([Demonstration("a", "b")]), minilm)
    with pytest.raises(ConfigError, match=r"has no utility\.json: it was not trained on gains"):
        make_retriever("utility", index, model=str(minilm_folder))
    with pytest.raises(ConfigError, match="not a folder of a trained encoder"):
        make_retriever("utility", index, model="nosuch")
    (tmp_path / "utility.json").write_text('{"slope": 1, "intercept": "x", "text": "both"}')
    with pytest.raises(ConfigError, match=r"utility\.json is damaged"):
        make_retriever("utility", index, model=str(tmp_path))
    (tmp_path / "utility.json").write_text('{"slope": 1, "intercept": 0, "text": "answers"}')
    with pytest.raises(ConfigError, match="text is 'answers'"):
        make_retriever("utility", index, model=str(tmp_path))


def test_bad_input_is_refused_before_the_encoder_is_loaded(tmp_path: Path) -> None:
    few = planted()
    few = Gains(few.gains[:24], few.questions, few.demonstrations, {})
    with pytest.raises(DataError, match=r"training needs 4 questions .* there are 2"):
        train_encoder(few, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="not an empty folder"):
        train_encoder(planted(), tmp_path / "full")
    for options in ({"epochs": 0}, {"held_out": 1.0}, {"learning_rate": 0.0}, {"text": "answers"}, {"list_size": 1}):
        with pytest.raises(ConfigError):
            TrainOptions(**options)  # type: ignore[arg-type]


def test_the_line_is_the_least_squares_one(minilm: Encoder) -> None:
    gains = planted()
    found = evaluate(minilm, gains, gains.by_question(), "instruction")
    texts = [one.instruction for one in gains.demonstrations.values()]
    unit = dict(zip(gains.demonstrations, minilm.encode(texts), strict=True))
    asked = dict(zip(gains.questions, minilm.encode(list(gains.questions.values()), kind="query"), strict=True))
    x = [float(unit[gain.candidate] @ asked[gain.question]) for gain in gains.gains]
    slope, intercept = np.polyfit(x, [gain.per_token for gain in gains.gains], 1)
    assert (found.slope, found.intercept) == pytest.approx((max(slope, 1e-6), intercept), abs=1e-4)
