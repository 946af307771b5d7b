"""The testbed as the test of the whole pipeline: it holds what it must, and falls when a part is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ragalign.bench import session
from ragalign.bench.conditions import MAIN
from ragalign.bench.expected import Expectation, expectations
from ragalign.bench.figures import report_of
from ragalign.bench.running import Run
from ragalign.bench.scoring import make_scorer
from ragalign.bench.testbed import PLANTED, REUSED, World, world_engine, world_folder
from ragalign.encoders import Encoder
from ragalign.generation import TransformersGenerator
from ragalign.packing.assembling import Assembler
from ragalign.reports.bench_result import Bench
from ragalign.retrieval import Retriever
from ragalign.templates import Template
from ragalign.text import normalise

N_QUERIES, N_TOPICS = 10, 30


@pytest.fixture(scope="module")
def world(minilm: Encoder) -> World:
    """A few queries over the demonstrations of some topics."""
    return World.load(first=N_QUERIES, n_topics=N_TOPICS, encoder=minilm)


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersGenerator]:
    # The tests' vLLM engine has another model, and a process has one engine; `--testbed` itself is tested below.
    with TransformersGenerator(world_engine().model, dtype="float32", device="cpu", batch_size=N_QUERIES) as generator:
        yield generator


Measure = Callable[[Path, Sequence[str]], tuple[Bench, list[Expectation]]]


@pytest.fixture(scope="module")
def measure(world: World, engine: TransformersGenerator) -> Measure:
    """Answers the queries under some conditions: the figures, and what was expected of them."""
    tokenizer = world_engine().load_tokenizer()

    def go(folder: Path, names: Sequence[str]) -> tuple[Bench, list[Expectation]]:
        run = Run(folder, world.chosen(names), world.cases, world.indexes, model="testbed")
        assert run.generate(engine, tokenizer) == []
        bench = report_of(run, session.score(run, make_scorer("exact-match")), baseline="random").bench
        assert bench is not None
        return bench, expectations(bench, run.answered())

    return go


def exact_match(bench: Bench, name: str) -> float:
    quality = bench.named(name).quality
    assert quality is not None
    return quality.estimate.value


def broken(expected: Sequence[Expectation]) -> list[str]:
    return [one.name for one in expected if not one.holds]


def test_retrieval_is_at_work(measure: Measure, tmp_path: Path) -> None:
    names = ("zero-shot", "fixed", "random", "retrieved", "similar-first", "retrieved-1", "planted", "one-of-nine")
    bench, expected = measure(tmp_path, names)
    assert broken(expected) == []
    assert len(expected) == 8
    assert exact_match(bench, "zero-shot") <= 5
    assert exact_match(bench, "retrieved") >= 80
    difference = bench.named("retrieved").quality.difference  # type: ignore[union-attr]
    assert difference is not None
    assert difference.value >= 40
    assert difference.low > 0


# Each breaks one part of the pipeline where it is at home: (what is broken, the conditions that show it, what must
# fail, the condition whose figure must fall).
def break_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Assembler, "ordered", lambda self, choice: list(choice.chosen))


def break_template(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Template, "render_demonstration", lambda self, one: f"{self.opening}{one.instruction}{self.closing}")


def break_stopping(patch: pytest.MonkeyPatch) -> None:
    load = Template.load
    patch.setattr(Template, "load", lambda name: replace(load(name), stop=("never",)))


def break_exclusion(patch: pytest.MonkeyPatch) -> None:
    resolve = Retriever._resolve
    patch.setattr(Retriever, "_resolve", lambda self, texts, exclude, where: resolve(self, texts, None, where))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutate", "names", "fails", "falls", "most"),
    [
        # The place of a demonstration hardly matters to the model, so here the order itself is what is looked at.
        (break_order, ("random", "retrieved", "retrieved-1"), "most similar demonstration comes last", "", 0),
        (break_template, ("random", "retrieved"), "retrieved beats random", "retrieved", 20),
        (break_stopping, ("random", "retrieved"), "end by themselves", "retrieved", 20),
        # Six right demonstrations stand beside the three planted ones.
        (break_exclusion, ("random", "retrieved", "planted"), "planted under the queries' own", "planted", 85),
    ],
    ids=["packer order", "template", "stop handling", "exclusion"],
)
def test_a_broken_part_makes_it_fall(
    measure: Measure,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    mutate: Callable[[pytest.MonkeyPatch], None],
    names: Sequence[str],
    fails: str,
    falls: str,
    most: float,
) -> None:
    mutate(monkeypatch)
    bench, expected = measure(tmp_path, names)
    assert any(fails in name for name in broken(expected)), expected
    if falls:
        assert exact_match(bench, falls) <= most


def test_planted_answers_are_wrong_ones_to_the_queries_own_texts(world: World) -> None:
    right = {normalise(case.query.text): case.references[0] for case in world.cases.cases}
    planted = [one for one in world.indexes[PLANTED].pool if one.source == PLANTED]
    assert len(planted) == 3 * N_QUERIES
    topics = {case.query.text: case.query.metadata["topic"] for case in world.cases.cases}
    for one in planted:
        assert one.response not in right[normalise(one.instruction)]
        assert one.metadata["topic"] in one.response.lower(), "it reads as if it were about the query's topic"
        assert one.metadata["topic"] in topics.values()
    assert not any(normalise(one.instruction) in right for one in world.indexes[MAIN].pool), "queries are unseen"


def test_one_of_nine_is_what_it_says(world: World) -> None:
    [control] = world.chosen(["one-of-nine"])
    assert control.retriever is not None
    pool = world.indexes[MAIN].pool
    topic = {case.query.text: case.query.metadata["topic"] for case in world.cases.cases}
    found = control.retriever(world.indexes[MAIN]).retrieve(list(topic), 9)
    for text, hits in zip(topic, found, strict=True):
        of = [pool.get(hit.id).metadata["topic"] for hit in hits]
        assert (len(of), of.count(topic[text])) == (9, 1)


def test_the_packaged_world_is_whole() -> None:
    folder = world_folder()
    assert sum(path.stat().st_size for path in (folder / "model").iterdir()) <= 4 * 2**20
    pool = [json.loads(line) for line in (folder / "pool.jsonl").read_text().splitlines()]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    assert (len(pool), len(queries)) == (2000, 200)
    assert {one["topic"] for one in queries} <= {one["topic"] for one in pool}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_on_the_real_engine(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["bench", "--testbed", "--first", "40", "--out", str(out), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", "from ragalign_cli.main import main; main()", *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert all(one["holds"] for one in report["expected"])
    assert len(report["expected"]) == 17
    names = {one["name"] for one in report["bench"]["conditions"]}
    assert {"zero-shot", "fixed", "random", "retrieved", "bm25", "hybrid", "similar-first"} <= names
    assert {f"retrieved-{n}" for n in (1, 2, 3, 5, 16)} <= names
    by_name = {one["name"]: one for one in report["bench"]["conditions"]}
    for name, plain in REUSED.items():
        mine, other = by_name[name]["costs"], by_name[plain]["costs"]
        assert abs(by_name[name]["quality"]["estimate"]["value"] - by_name[plain]["quality"]["estimate"]["value"]) <= 2
        assert mine["reused_tokens"]["value"] > 0
        assert mine["reused_bytes"] > 0
        assert mine["prefilled_tokens"]["value"] < 0.6 * other["prefilled_tokens"]["value"]
        assert "reused_tokens" not in other
    assert (out / "report.html").is_file()
