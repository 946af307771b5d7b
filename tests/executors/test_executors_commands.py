"""Commands with --ray, on a real cluster of this machine: the same files as without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.reward_model import build_reward_model
from typer.testing import CliRunner

from ragalign.encoders import Encoder
from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.judging.output import read_verdicts
from ragalign.pool import Pool
from ragalign.recipes import data_folder
from ragalign_cli.main import app

pytest.importorskip("ray", reason="needs the `ray` extra")

STARTER = data_folder() / "starter.jsonl"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


@pytest.mark.slow
def test_commands_make_the_same_files(
    cluster: Any, tiny_model: Path, minilm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGALIGN_CACHE", str(tmp_path / "cache"))
    index = ("index", "--pool", STARTER, "--encoder", minilm_folder, "--no-cache")
    for name, more in (("here", ()), ("there", ("--ray", "local", "--workers", 2))):
        assert run(*index, "--out", tmp_path / name, *more).exit_code == 0
    here, there = Index.open(tmp_path / "here"), Index.open(tmp_path / "there")
    assert here.pool.fingerprint == there.pool.fingerprint
    assert here.manifest.encoder == there.manifest.encoder
    np.testing.assert_allclose(here.vectors, there.vectors, atol=1e-5)
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps({"id": f"q{n}", "instruction": f"What is {n}?"}) + "\n" for n in range(12)))
    generate = (
        "generate",
        tmp_path / "here",
        "--model",
        tiny_model,
        "--backend",
        "transformers",
        "--queries",
        questions,
    )
    generate += ("--dtype", "float32", "--max-new-tokens", 6, "--seed", 1)
    # A run begun here is resumed on a cluster, since the settings are the same.
    assert run(*generate, "--first", 4, "--out", tmp_path / "a.jsonl").exit_code == 0
    done = run(*generate, "--out", tmp_path / "a.jsonl", "--ray", "local", "--workers", 2, "--json")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == sorted(f"q{n}" for n in range(12))
    assert len({row["run"] for row in rows}) == 1
    assert len({tuple(row) for row in rows}) == 1
    with pytest.raises(ConfigError, match="9 workers need 1 CPU each, but it has 8 CPUs"):
        run(*generate, "--out", tmp_path / "b.jsonl", "--ray", "local", "--workers", 9)


@pytest.mark.slow
def test_rewards_are_those_of_one_process(cluster: Any, tiny_model: Path, tmp_path: Path) -> None:
    """`ragalign judge run` with a reward model; one of its actors dies on the way."""
    from ragalign.judging.judges import RewardJudge
    from ragalign.judging.retries import FinalError
    from ragalign.judging.reward_ray import RayRewardModels

    model = build_reward_model(tmp_path / "reward", tiny_model)
    answers = tmp_path / "answers.jsonl"
    texts = ["word " * 5000, *(f"River number {n}." for n in range(12))]
    rows = ({"id": f"q{n}", "instruction": "Name a river.", "response": text} for n, text in enumerate(texts))
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = ("judge", "run", "--protocol", "reward", "--answers", answers, "--judge", f"reward:{model}", "--json")
    alone = json.loads(run(*judge, "--out", tmp_path / "alone").stdout)
    spread = json.loads(run(*judge, "--out", tmp_path / "spread", "--ray", "local", "--workers", 2).stdout)
    assert spread["n"] == alone["n"] == 12
    assert list(spread["reasons"]) == list(alone["reasons"])
    verdicts = [read_verdicts(tmp_path / name / "verdicts.jsonl") for name in ("alone", "spread")]
    for one, other in zip(*verdicts, strict=True):
        assert (one.item_id, one.reason) == (other.item_id, other.reason)
        assert one.scores == pytest.approx(other.scores, abs=1e-5)

    messages = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Nile."}]
    with RayRewardModels(address="local", workers=1) as models:
        expected = models.score(RewardJudge(str(model)), messages)
        [actor] = models._free.queue
        with pytest.raises(FinalError, match="the reward model reads 2,048"):
            models.score(RewardJudge(str(model)), [{"role": "user", "content": "word " * 5000}, messages[1]])
        cluster.kill(actor, no_restart=False)
        assert models.score(RewardJudge(str(model)), messages) == expected
        (tmp_path / "empty").mkdir()
        with pytest.raises(ConfigError, match="cannot load the reward model"):
            models.score(RewardJudge(str(tmp_path / "empty")), messages)


def test_only_reward_models_need_a_cluster(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"id": "q", "instruction": "Name a river.", "response": "The Nile."}\n')
    with pytest.raises(ConfigError, match="only reward models run on a Ray cluster"):
        run(
            *("judge", "run", "--protocol", "reward", "--answers", answers, "--judge", "m@http://localhost:1"),
            *("--out", tmp_path / "judged", "--ray", "local"),
        )


REUSE = """
[template]
form = "package:testbed/template.toml"
[retriever]
name = "dense"
[reuse]
enabled = true
"""


@pytest.mark.slow
def test_benches_gains_and_stores_are_made_on_a_cluster(
    cluster: Any,
    tiny_model: Path,
    starter_index: Path,
    minilm: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    monkeypatch.setenv("RAGALIGN_CACHE", str(tmp_path / "cache"))
    on_cluster = ("--ray", "local", "--workers", 2)
    questions = tmp_path / "q.jsonl"
    rows = ({"id": f"q{n}", "instruction": f"What is {n}?", "reference": f"{n} is a number."} for n in range(6))
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ("--model", tiny_model, "--backend", "transformers", "--dtype", "float32")
    bench = ("bench", "--recipe", "zero-shot", "--recipe", "urial", "--queries", questions, "--out", tmp_path / "bench")
    bench += ("--rounds", 0, "--max-new-tokens", 4, "--metric", "reference-likelihood")
    assert run(*bench, *model, *on_cluster, "--json").exit_code == 0
    # What is finished there is finished here: no engine starts.
    assert run(*bench, *model, "--json").exit_code == 0
    gains = ("utility", "score", starter_index, "--queries", questions, "--candidates", 4)
    for name, more in (("there", on_cluster), ("here", ())):
        assert run(*gains, *model, "--out", tmp_path / f"{name}.jsonl", *more).exit_code == 0
    there, here = (
        {
            (row["id"], row["candidate"]): row["gain"]
            for row in map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())
        }
        for name in ("there", "here")
    )
    assert len(here) == 24
    assert there == pytest.approx(here, abs=1e-3)
    world = data_folder() / "testbed"
    Index.build(Pool.load(world / "pool.jsonl")[:12], minilm).save(tmp_path / "short")
    (tmp_path / "mine.toml").write_text(REUSE)
    store = ("kv", "build", tmp_path / "short", "--recipe", tmp_path / "mine.toml", "--model", world / "model")
    store += ("--dtype", "float32", "--store", tmp_path / "kv")
    first = json.loads(run(*store, *on_cluster, "--json").stdout)
    assert first["n_computed"] == 12
    again = json.loads(run(*store, *on_cluster, "--json").stdout)
    assert (again["n_computed"], again["n_present"]) == (0, 12)
    assert run("kv", "verify", tmp_path / "kv").exit_code == 0
