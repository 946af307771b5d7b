"""Actors that die, fail to start, or find no place, on a real Ray cluster; those of these tests load no model."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragalign.errors import ConfigError, DataError, GenerationError
from ragalign.executors import crew as crew_module
from ragalign.executors.crew import Crew
from ragalign.executors.room import WorkerResources
from ragalign.executors.sharing import share
from ragalign.executors.worker import EncoderWorker

pytest.importorskip("ray", reason="needs the `ray` extra")

POISON = 10**6


def worker_class() -> type[Any]:
    """A class that Ray sends with its code, since the workers cannot import this module."""

    class Doubler:
        """Doubles numbers; the folder says how its starts go."""

        def __init__(self, folder: str, start_s: float = 0.0) -> None:
            self._folder, self._start_s = folder, start_s

        def start(self, secrets: dict[str, str]) -> Any:
            import time
            from pathlib import Path

            from ragalign.executors.settings import receive_secrets
            from ragalign.executors.worker import WorkerInfo

            receive_secrets(secrets)
            time.sleep(self._start_s)
            folder = Path(self._folder)
            if (folder / "die").exists():
                os._exit(1)
            if (folder / "fail").exists():
                (folder / f"failed-{time.monotonic()}").touch()
                raise RuntimeError("no memory\nis left")
            return WorkerInfo(os.getpid(), 1)

        def double(self, items: list[int]) -> Iterator[tuple[list[int], list[int]]]:
            for place, item in enumerate(items):
                if item == POISON:
                    os._exit(1)
                if item < 0:
                    raise ValueError("the first line\nand the cause")
                yield [place], [2 * item]

        def environment(self) -> dict[str, str]:
            return dict(os.environ)

    return Doubler


@pytest.fixture
def make_crew(cluster: Any, tmp_path: Path) -> Iterator[Callable[..., Crew[Any]]]:
    made: list[Crew[Any]] = []

    def make(workers: int = 2, cpus: float = 1, start_s: float = 0.0) -> Crew[Any]:
        made.append(Crew(cluster, WorkerResources(workers, cpus, 0), worker_class(), (str(tmp_path), start_s)))
        return made[-1]

    yield make
    for each in made:
        each.end()
    until = time.monotonic() + 30
    while cluster.available_resources().get("CPU", 0) != 8:
        assert time.monotonic() < until
        time.sleep(0.05)


def doubled(crew: Crew[Any], items: Any, run_size: int = 4) -> Iterator[tuple[int, int]]:
    options: dict[str, Any] = {"ids_of": lambda _: np.zeros(1, np.int32), "name_of": lambda _, item: f"the item {item}"}
    for positions, _, results in share(crew, items, "double", run_size=run_size, **options):
        yield from zip(positions, results, strict=True)


def pids(crew: Crew[Any]) -> list[int]:
    return [about.pid for _, about in crew.started]


def test_what_takes_long_to_start_has_a_place(make_crew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "_LOOK_S", 0.1)
    # This one holds all of the cluster while it starts.
    crew = make_crew(1, cpus=8, start_s=2.0)
    until = time.monotonic() + 60
    while not crew._has_place(crew.workers[0]):
        assert time.monotonic() < until
        time.sleep(0.05)
    monkeypatch.setattr(crew_module, "_REPLACE_S", 0.0)
    assert crew.first().pid > 0
    with pytest.raises(GenerationError, match=r"no worker is left.* 1 worker needs 1 CPU, and 0 CPUs .* are free"):
        make_crew(1).first()


def test_a_call_to_all_does_not_wait_for_a_place(make_crew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "_PLACE_S", 0.5)
    crew = make_crew(2, cpus=5)
    started = time.monotonic()
    assert len(crew.call_all("environment")) == 1
    assert time.monotonic() - started < 20
    # Nor does work.
    assert dict(doubled(crew, range(10))) == {n: 2 * n for n in range(10)}


@pytest.mark.slow
def test_a_replacement_that_fails_costs_nothing_while_another_lives(
    make_crew: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(crew_module, "_MOST_FAILURES", 3)
    monkeypatch.setattr(crew_module, "_PAUSE_S", 0.0)
    crew = make_crew(2)
    crew.call_all("environment")
    (tmp_path / "fail").touch()

    def items() -> Iterator[int]:
        until = time.monotonic() + 60
        for n in range(10**6):
            yield n
            # The death itself is the first failure.
            if len(list(tmp_path.glob("failed-*"))) == 2 or time.monotonic() > until:
                yield from range(n + 1, n + 2000)
                return

    counts: Counter[int] = Counter()
    with caplog.at_level(logging.WARNING):
        for position, result in doubled(crew, items()):
            assert result == 2 * position
            counts[position] += 1
            if sum(counts.values()) == 10:
                os.kill(pids(crew)[0], signal.SIGKILL)
    assert counts == Counter(range(len(counts)))
    assert len(counts) > 2000
    assert "failed 3 times in a row and is not started again: RuntimeError: no memory is left" in caplog.text
    os.kill(pids(crew)[0], signal.SIGKILL)
    for message in (r"each worker failed 3 times in a row .* no memory is left", "no worker is left: each failed 3"):
        with pytest.raises(GenerationError, match=message):
            dict(doubled(crew, range(10)))


def test_an_item_that_kills_its_workers_is_named(make_crew: Any) -> None:
    crew = make_crew(2)
    items = [*range(300), POISON, *range(300)]
    found: Counter[int] = Counter()
    answers = doubled(crew, items, run_size=256)
    with pytest.raises(GenerationError, match="4 workers died on the item 1000000; leave it out") as given_up:
        found.update(position for position, _ in answers)
    assert "\n" not in str(given_up.value)
    assert "worker process has died" in str(given_up.value)
    assert max(found.values(), default=1) == 1
    assert dict(doubled(crew, range(10))) == {n: 2 * n for n in range(10)}


@pytest.mark.slow
def test_workers_that_die_as_they_start_are_given_up(
    make_crew: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "_MOST_FAILURES", 3)
    monkeypatch.setattr(crew_module, "_PAUSE_S", 0.0)
    (tmp_path / "die").touch()
    with pytest.raises(GenerationError, match="each worker failed 3 times in a row without an answer") as given_up:
        make_crew(1).first()
    assert "\n" not in str(given_up.value)


def test_errors_give_their_cause_in_one_line(make_crew: Any, tmp_path: Path) -> None:
    crew = make_crew(1)
    with pytest.raises(GenerationError, match="a worker failed: ValueError: the first line and the cause"):
        dict(doubled(crew, [1, -1]))
    assert len(pids(crew)) == 1  # it lives on
    (tmp_path / "fail").touch()
    with pytest.raises(GenerationError, match="a worker failed: RuntimeError: no memory is left"):
        make_crew(1).first()


def test_what_is_interrupted_starts_nothing(make_crew: Any) -> None:
    crew = make_crew(2)
    answers = doubled(crew, range(1000), run_size=300)
    next(answers)
    with pytest.raises(GenerationError, match="have another job"):
        next(doubled(crew, range(10)))
    answers.close()  # type: ignore[attr-defined]
    assert None in [worker.actor for worker in crew.workers]
    assert dict(doubled(crew, range(10))) == {n: 2 * n for n in range(10)}
    crew.end()
    with pytest.raises(GenerationError, match="shut down"):
        next(doubled(crew, range(10)))


def test_settings_reach_the_workers_and_secrets_no_log(
    make_crew: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    secret = f"hf_secret{os.getpid()}"
    monkeypatch.chdir(tmp_path)
    values = {"RAGALIGN_CACHE": "mine", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "3", "HF_TOKEN": secret}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    [found] = make_crew(1).call_all("environment")
    expected = values | {"RAGALIGN_CACHE": str(tmp_path / "mine")}
    assert {name: found.get(name) for name in values} == expected
    logs = Path(ray._private.worker._global_node.get_session_dir_path(), "logs")
    texts = [file.read_text(errors="replace") for file in logs.rglob("*") if file.is_file()]
    assert any("VLLM_CPU_KVCACHE_SPACE" in text for text in texts)
    assert not any(secret in text for text in texts)


def test_an_encoder_that_differs_is_refused(minilm_folder: Path) -> None:
    worker = EncoderWorker({"id_or_folder": str(minilm_folder)}, "0" * 64)
    with pytest.raises(ConfigError, match="differs from the one here") as refused:
        worker.start({})
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_encoders_stay_and_survive_a_kill(cluster: Any, minilm_folder: Path) -> None:
    from ragalign.encoders import Encoder
    from ragalign.executors import RayEncoder

    texts = [f"Text {n}: how do I boil egg number {n}?" for n in range(300)]
    alone = Encoder.load(minilm_folder, cache=None).encode(texts)
    with RayEncoder(minilm_folder, address="local", workers=2, batch_size=16, cache=None) as encoder:
        with pytest.raises(DataError, match="a text cannot be encoded"):
            encoder.encode(["a lone \ud800 surrogate"])
        np.testing.assert_allclose(encoder.encode(texts[:40]), alone[:40], atol=1e-5)
        crew = encoder._crew
        assert crew is not None
        before = set(pids(crew))
        np.testing.assert_allclose(encoder.encode(texts[40:80]), alone[40:80], atol=1e-5)
        assert encoder._crew is crew
        assert before <= set(pids(crew))
        rows: list[int] = []
        for done, vectors in encoder._encoded(texts, "document", in_chunks=True):
            if not rows:
                os.kill(pids(crew)[0], signal.SIGKILL)
            rows += done
            np.testing.assert_allclose(vectors, alone[done], atol=1e-5)
        assert sorted(rows) == list(range(300))
