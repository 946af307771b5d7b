"""Engines that reuse, over random models, and Transformers' answer to what they should say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.reuse_world import World, make_world

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start an engine: closing it takes down any other engine of the process."""
    for item in items:
        if item.path.parent == HERE and item.path.name in (
            "test_reuse_engine.py",
            "test_reuse_oracle.py",
            "test_reuse_serving.py",
        ):
            item.add_marker(pytest.mark.own_engine)


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One engine over the tiny Llama, for all tests of a file."""
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    with make_world(tiny_model, tmp_path_factory.mktemp("reuse")) as made:
        yield made
