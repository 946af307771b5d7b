"""Encoding and generating on a real Ray cluster of this machine, which all tests here share."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragalign.aligner import Aligner, Failure
from ragalign.encoders import Encoder
from ragalign.errors import ConfigError, GenerationError
from ragalign.generation import make_generator
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.recipes import data_folder
from ragalign.types import Decoding, Prompt, Query, Turn

pytest.importorskip("ray", reason="needs the `ray` extra")

DECODING = Decoding(max_tokens=8, seed=3, temperature=1.0)
STARTER = data_folder() / "starter.jsonl"


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
    from ragalign.executors.room import free_resources, wait_for_room

    with pytest.raises(ConfigError, match=r"9 workers need 1 CPU each, but it has 8 CPUs"):
        RayGenerator(str(tiny_model), address="local", workers=9)
    with pytest.raises(ConfigError, match=r"9 workers need 1 CPU each, but it has 8 CPUs"):
        RayEncoder(address="local", workers=9)
    with pytest.raises(ConfigError, match=r"1 worker needs 9 CPUs, but it has 8 CPUs .* add larger nodes"):
        RayGenerator(str(tiny_model), address="local", cpus=9)
    with pytest.raises(ConfigError, match="cpus must be more than 0"):
        RayGenerator(str(tiny_model), address="local", cpus=0)
    [node] = free_resources(cluster)
    n_free = cluster.available_resources()["CPU"]
    assert n_free == node["CPU"] >= 2
    busy = cluster.remote(num_cpus=n_free - 1)(lambda: time.sleep(60)).remote()
    until = time.monotonic() + 60
    while cluster.available_resources().get("CPU", 0) != 1:
        assert time.monotonic() < until
        time.sleep(0.05)
    monkeypatch.setattr(generator, "wait_for_room", partial(wait_for_room, patience_s=0))
    with pytest.raises(GenerationError, match=r"busy: 2 workers need 1 CPU each, and 1 CPUs .* room for 1"):
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


def test_failures_are_those_of_one_process(cluster: Any, tiny_model: Path) -> None:
    queries = [Query(str(n), (Turn("user", "What is it? " * (2000 if n == 2 else 1)),)) for n in range(5)]
    options: dict[str, Any] = {"backend": "transformers", "ray": "local", "workers": 1, "cpus": 1}
    with Aligner.from_recipe("zero-shot", model=str(tiny_model), **options) as aligner:
        found = dict(aligner.iter_generate(queries, decoding=Decoding(max_tokens=4)))
    assert [isinstance(found[n], Failure) for n in range(5)] == [n == 2 for n in range(5)]


@pytest.mark.slow
def test_real_engines_survive_a_kill(cluster: Any) -> None:
    """The trained model of the testbed in vLLM."""
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    from ragalign.executors import RayGenerator
    from ragalign.tokenization import Tokenizer

    model = data_folder() / "testbed" / "model"
    tokenizer = Tokenizer.load(model)
    prompts = prompts_of(lambda text: Prompt((text,), np.array(tokenizer.encode(text), dtype=np.int32)), 60)
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": 2048, "kv_cache_memory_bytes": 2**28}
    with RayGenerator(str(model), backend="vllm", address="local", workers=2, cpus=1, run_size=5, **options) as made:
        first = made.generate(prompts, Decoding(max_tokens=8))
        counts: Counter[int] = Counter()
        for position, completion in made.iter_generate(prompts, Decoding(max_tokens=8)):
            counts[position] += 1
            assert completion.outputs == first[position].outputs
            if sum(counts.values()) == 10:
                os.kill(made.worker_pids()[0], signal.SIGKILL)
        assert counts == Counter(range(60))
