"""Encoding and generating on a real Ray cluster of this machine, which all tests here share."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from fixtures.reward_model import build_reward_model
from typer.testing import CliRunner

from ragalign.aligner import Aligner, Failure
from ragalign.encoders import Encoder
from ragalign.errors import ConfigError, GenerationError
from ragalign.generation import make_generator
from ragalign.indexes import Index
from ragalign.judging.output import read_verdicts
from ragalign.pool import Pool
from ragalign.recipes import data_folder
from ragalign.types import Decoding, Prompt, Query, Turn
from ragalign_cli.main import app

pytest.importorskip("ray", reason="needs the `ray` extra")

DECODING = Decoding(max_tokens=8, seed=3, temperature=1.0)
STARTER = data_folder() / "starter.jsonl"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster with eight logical CPUs, whatever this machine has; after it, no process of Ray is left."""
    from ragalign.executors.cluster import import_ray, quiet_warnings

    with quiet_warnings():
        ray = import_ray()
        ray.init(num_cpus=8, address="local", include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    yield ray
    with quiet_warnings():
        ray.shutdown()
    until = time.monotonic() + 30
    while left := ray_processes():
        assert time.monotonic() < until, left
        time.sleep(0.2)


def ray_processes() -> list[str]:
    """The processes of Ray that this one has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with_name = " ".join(process.cmdline()) if process.is_running() else ""
        if "ray::" in with_name or "/ray/" in with_name:
            found.append(with_name)
    return found


def prompts_of(engine_prompts: Any, n: int) -> list[Prompt]:
    return [engine_prompts(f"Question {number}: how do I boil egg number {number}?") for number in range(n)]


@pytest.fixture(scope="module")
def make_prompt(tiny_model: Path) -> Any:
    from ragalign.tokenization import Tokenizer

    tokenizer = Tokenizer.load(tiny_model)
    return lambda text: Prompt((text,), np.array(tokenizer.encode(text), dtype=np.int32))


@pytest.fixture(scope="module")
def generator(cluster: Any, tiny_model: Path) -> Iterator[Any]:
    """Two transformers engines, which take three prompts at a time."""
    from ragalign.executors import RayGenerator

    options: dict[str, Any] = {"backend": "transformers", "dtype": "float32", "batch_size": 1}
    with RayGenerator(str(tiny_model), address="local", workers=2, cpus=1, run_size=3, **options) as made:
        yield made


def test_answers_are_those_of_one_engine(generator: Any, tiny_model: Path, make_prompt: Any) -> None:
    prompts = prompts_of(make_prompt, 20)
    decoding = Decoding(max_tokens=8, seed=3, temperature=1.0, n=2)
    with make_generator("transformers", model=str(tiny_model), dtype="float32", batch_size=1) as alone:
        expected = [completion.outputs for completion in alone.generate(prompts, decoding)]
        assert (generator.context_length, generator.vocabulary_size) == (alone.context_length, alone.vocabulary_size)
        assert generator.unsupported == alone.unsupported
    found = generator.generate(prompts, decoding)
    assert [completion.outputs for completion in found] == expected
    assert [completion.prompt for completion in found] == prompts
    # An iterator is read while earlier prompts are answered, and errors of its own come out.
    lazily = dict(generator.iter_generate(iter(prompts), decoding))
    assert [lazily[position].outputs for position in range(20)] == expected

    def broken() -> Iterator[Prompt]:
        yield from prompts[:2]
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(generator.iter_generate(broken(), decoding))
    assert list(generator.iter_generate([], decoding)) == []


def test_a_call_to_all_outlives_a_worker(generator: Any) -> None:
    os.kill(generator.worker_pids()[0], signal.SIGKILL)
    assert not generator.reset_prefix_cache()  # transformers has none


def test_workers_get_paths_that_hold_in_any_folder_and_the_same_weights(
    minilm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragalign.executors import RayEncoder
    from ragalign.executors.cluster import path_on_workers

    (tmp_path / "models" / "m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert path_on_workers("models/m") == str(tmp_path / "models" / "m")
    assert path_on_workers("owner/name") == "owner/name"
    monkeypatch.chdir(minilm_folder.parent)
    with RayEncoder(minilm_folder.name, address="local", workers=1, cache=None) as encoder:
        assert encoder._options["id_or_folder"] == str(minilm_folder.resolve())
        assert encoder._options["revision"] == encoder.content_digest


@pytest.mark.parametrize("n_kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_kills_lose_nothing_and_repeat_nothing(generator: Any, make_prompt: Any, n_kills: int) -> None:
    prompts = prompts_of(make_prompt, 30 + 6 * n_kills)
    counts: Counter[int] = Counter()
    killed: list[int] = []
    for position, completion in generator.iter_generate(prompts, DECODING):
        counts[position] += 1
        assert completion.prompt is prompts[position]
        assert completion.n_output_tokens > 0
        alive = [pid for pid in generator.worker_pids() if pid not in killed]
        if len(killed) < n_kills and alive and sum(counts.values()) > 5 * len(killed):
            os.kill(alive[len(killed) % len(alive)], signal.SIGKILL)
            killed.append(alive[len(killed) % len(alive)])
    assert counts == Counter(range(len(prompts)))
    assert len(set(killed)) == n_kills


def test_what_is_left_running_is_given_up(generator: Any, make_prompt: Any) -> None:
    prompts = prompts_of(make_prompt, 30)
    answers = generator.iter_generate(prompts, DECODING)
    first, _ = next(answers)
    answers.close()
    assert first in range(30)
    assert len(generator.generate(prompts[:4], DECODING)) == 4


@pytest.mark.slow
def test_an_engine_that_does_not_start_says_why_once(cluster: Any, tmp_path: Path) -> None:
    from ragalign.executors import RayGenerator

    with pytest.raises(ConfigError) as refused:
        RayGenerator(str(tmp_path / "none"), address="local", backend="transformers", cpus=1)
    assert "\n" not in str(refused.value)
    assert "none" in str(refused.value)


def test_a_cluster_too_small_or_busy_is_refused(
    cluster: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragalign.executors import RayEncoder, RayGenerator, generator
    from ragalign.executors.cluster import wait_for_room

    with pytest.raises(ConfigError, match=r"9 workers need 1 CPU each, but it has 8 CPUs"):
        RayGenerator(str(tiny_model), address="local", workers=9)
    with pytest.raises(ConfigError, match=r"8 workers need 1 CPU each, and 1 for reading, but it has 8 CPUs"):
        RayEncoder(address="local", workers=8)
    n_free = cluster.available_resources()["CPU"]
    assert n_free >= 2
    busy = cluster.remote(num_cpus=n_free - 1)(lambda: time.sleep(60)).remote()
    until = time.monotonic() + 60
    while cluster.available_resources().get("CPU", 0) != 1:
        assert time.monotonic() < until
        time.sleep(0.05)
    monkeypatch.setattr(generator, "wait_for_room", partial(wait_for_room, patience_s=0))
    with pytest.raises(GenerationError, match=r"busy: 2 CPUs .* are needed, but 1 CPUs"):
        RayGenerator(str(tiny_model), address="local", workers=2)
    cluster.cancel(busy, force=True)
    while cluster.available_resources().get("CPU", 0) != n_free:
        assert time.monotonic() < until + 60
        time.sleep(0.05)


def test_an_endpoint_needs_no_cluster(tiny_model: Path) -> None:
    from ragalign.executors import RayGenerator

    with pytest.raises(ConfigError, match="an endpoint needs no Ray cluster"):
        RayGenerator(str(tiny_model), backend="http://localhost:8000/v1")
    with pytest.raises(ConfigError, match="workers needs a Ray cluster"):
        Aligner.from_recipe("zero-shot", model=str(tiny_model), workers=2)


@pytest.mark.slow
def test_an_index_is_that_of_one_process(cluster: Any, minilm: Encoder, minilm_folder: Path, tmp_path: Path) -> None:
    from ragalign.executors import RayEncoder

    pool = Pool.load(STARTER)
    options: dict[str, Any] = {"address": "local", "workers": 2, "batch_size": 16, "cache": tmp_path / "cache"}
    with RayEncoder(minilm_folder, **options) as encoder:
        assert encoder.fingerprint == minilm.fingerprint
        whole = Index.build(pool, encoder)
    # What is cached is not sent again: this one could not send anything.
    with RayEncoder(minilm_folder, **options) as encoder:
        encoder._encoded = None  # type: ignore[method-assign, assignment]
        assert len(Index.build(pool, encoder)) == len(pool)
    alone = Index.build(pool, minilm)
    assert whole.pool.ids == alone.pool.ids
    assert whole.manifest.n_truncated == alone.manifest.n_truncated
    np.testing.assert_allclose(whole.vectors, alone.vectors, atol=1e-5)
    queries = minilm.encode([f"{text}?" for text in pool.instructions[:50]], kind="query")
    np.testing.assert_array_equal(whole.search(queries, 5)[1], alone.search(queries, 5)[1])
    # The vectors that one process cached are found on a cluster, and the other way round.
    shared = Encoder.load(minilm_folder, cache=tmp_path / "cache")
    np.testing.assert_array_equal(shared.encode(pool.instructions), whole.vectors)


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


def test_probabilities_are_those_of_one_engine(generator: Any, tiny_model: Path, make_prompt: Any) -> None:
    sequences = [prompt.token_ids for prompt in prompts_of(make_prompt, 10)]
    starts = [len(ids) - 4 for ids in sequences]
    with make_generator("transformers", model=str(tiny_model), dtype="float32", batch_size=1) as alone:
        expected = dict(alone.token_logprobs(sequences, starts))
        whole = dict(alone.distributions(sequences[:3], starts[:3]))
    found = dict(generator.token_logprobs(sequences, starts))
    for position in range(10):
        np.testing.assert_allclose(found[position], expected[position], atol=1e-4)
    for position, shown in generator.distributions(sequences[:3], starts[:3]):
        np.testing.assert_allclose(shown.dense, whole[position].dense, atol=1e-4)


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


def test_failures_are_those_of_one_process(cluster: Any, tiny_model: Path) -> None:
    queries = [Query(str(n), (Turn("user", "What is it? " * (2000 if n == 2 else 1)),)) for n in range(5)]
    options: dict[str, Any] = {"backend": "transformers", "ray": "local", "workers": 1, "cpus": 1}
    with Aligner.from_recipe("zero-shot", model=str(tiny_model), **options) as aligner:
        found = dict(aligner.iter_generate(queries, decoding=Decoding(max_tokens=4)))
    assert [isinstance(found[n], Failure) for n in range(5)] == [n == 2 for n in range(5)]


@pytest.mark.slow
def test_real_engines_survive_a_kill(cluster: Any, tiny_model: Path, make_prompt: Any) -> None:
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    from ragalign.executors import RayGenerator

    prompts = prompts_of(make_prompt, 60)
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": 2048, "kv_cache_memory_bytes": 2**28}
    with RayGenerator(
        str(tiny_model), backend="vllm", address="local", workers=2, cpus=1, run_size=5, **options
    ) as made:
        first = made.generate(prompts, Decoding(max_tokens=8))
        counts: Counter[int] = Counter()
        for position, completion in made.iter_generate(prompts, Decoding(max_tokens=8)):
            counts[position] += 1
            assert completion.outputs == first[position].outputs
            if sum(counts.values()) == 10:
                os.kill(made.worker_pids()[0], signal.SIGKILL)
        assert counts == Counter(range(60))


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
