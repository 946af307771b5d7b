"""The benchmark on a real base model: its jobs travel as files, resume, and are compared as its page says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ragalign.generation import VllmGenerator
from ragalign.types import Decoding, Prompt

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from real import figures, jobs, measure, observations
from real.jobs import Group, Job, PieceStore


def _prepared(folder: Path) -> tuple[PieceStore, list[Group]]:
    pieces = PieceStore()
    start, first, second, answer = (pieces.add(ids) for ids in ([1, 5, 6], [7, 8, 9, 10], [11, 12], [13, 14, 15]))
    likely = Group(
        "likely", "likely", jobs=[Job("a", "q1", (start, first), answer), Job("b", "q1", (start, second), answer)]
    )
    greedy = Group(
        "greedy", "greedy", {"temperature": 0.0, "max_tokens": 4}, ("\n#",), [Job("a", "q1", (start, first))]
    )
    jobs.save(folder, pieces, [likely, greedy], {"context": 64})
    return pieces, [likely, greedy]


def test_jobs_come_back_from_files_as_they_were(tmp_path: Path) -> None:
    pieces, groups = _prepared(tmp_path)
    again, found, settings = jobs.load(tmp_path)
    assert found == groups
    assert settings == {"context": 64}
    for group in groups:
        for job in group.jobs:
            assert np.array_equal(again.join(job.pieces), pieces.join(job.pieces))


def test_a_piece_is_kept_once() -> None:
    pieces = PieceStore()
    assert [pieces.add([1, 2]), pieces.add([3]), pieces.add([1, 2])] == [0, 1, 0]


def test_measuring_gives_the_engine_s_own_numbers_and_resumes(vllm_engine: VllmGenerator, tmp_path: Path) -> None:
    pieces, groups = _prepared(tmp_path)
    for _ in range(3):  # each time one job, since the clock is over after it
        for group in groups:
            measure.work(vllm_engine, group, pieces, tmp_path, measure.Clock(-1.0), together=100)
    rows = [json.loads(line) for line in (tmp_path / "measured" / "likely.jsonl").read_text().splitlines()]
    assert [(row["condition"], row["question"]) for row in rows] == [("a", "q1"), ("b", "q1")]
    for row, job in zip(rows, groups[0].jobs, strict=True):
        prompt, answer = pieces.join(job.pieces).tolist(), [13, 14, 15]
        [(_, expected)] = vllm_engine.distributions([prompt + answer], [len(prompt)], top_k=3)
        assert row["logprobs"] == pytest.approx(expected.logprobs.tolist(), abs=2e-5)
    [answered] = [json.loads(line) for line in (tmp_path / "measured" / "greedy.jsonl").read_text().splitlines()]
    prompt = Prompt(("",), pieces.join(groups[1].jobs[0].pieces), stop=("\n#",))
    [completion] = vllm_engine.generate([prompt], Decoding(max_tokens=4))
    assert (answered["text"], answered["finish_reason"]) == (completion.text, completion.finish_reason)


def _part(**conditions: list[float]) -> observations.Part:
    part = observations.Part()
    for condition, values in conditions.items():
        for number, value in enumerate(values):
            part.add("nll", condition.replace("_", " "), (f"q{number}", 0), value)
    return part


def test_fixed_is_the_mean_over_the_drawn_sets_question_by_question() -> None:
    part = _part(fixed_0=[1.0, 2.0], fixed_1=[3.0, 6.0], random=[5.0, 5.0]).with_fixed()
    assert part.values["nll"] == {"random": {("q0", 0): 5, ("q1", 0): 5}, "fixed": {("q0", 0): 2, ("q1", 0): 4}}


def test_differences_are_paired_over_what_both_have() -> None:
    first, second = {("a", 0): 3.0, ("b", 0): 7.0, ("c", 0): 100.0}, {("b", 0): 6.0, ("a", 0): 2.0}
    found = figures.difference(first, second)
    assert (found.value, found.low, found.high, found.n) == (1, 1, 1, 2)


def test_slices_partition_the_questions_and_average_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    retrieved, zero = rng.normal(size=30), rng.normal(size=30)
    part = _part(retrieved_9=retrieved.tolist(), **{"zero-shot": zero.tolist()})
    questions = {
        f"q{number}": {"category": "xyz"[number % 3], "nearest": float(value)}
        for number, value in enumerate(rng.uniform(size=30))
    }
    empty = observations.Part()
    found = figures.figures(observations.Measured(questions, part, empty, empty, empty))
    for slices in (found.by_category["nll"], found.by_nearness["nll"]):
        assert [one.n for one in slices] == [10, 10, 10]
        means = [one.differences["zero-shot"].value for one in slices]
        assert np.mean(means) == pytest.approx(float((retrieved - zero).mean()))
    lows = [one.name.split(" to ") for one in found.by_nearness["nll"]]
    assert lows == sorted(lows)
    assert found.alpaca.against["zero-shot"]["retrieved 9"]["nll"].value == pytest.approx((retrieved - zero).mean())
