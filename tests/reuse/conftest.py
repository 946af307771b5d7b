"""Engines that reuse, over random models, and Transformers' answer to what they should say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.reuse_world import World, make_world


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One engine over the tiny Llama, in a process of its own, for all tests of a file."""
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    with make_world(tiny_model, tmp_path_factory.mktemp("reuse")) as made:
        yield made
