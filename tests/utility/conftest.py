"""Parts that the tests of utility share: a small model, and an index over the starter pool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ragalign.encoders import Encoder
from ragalign.generation import TransformersGenerator
from ragalign.indexes import Index
from ragalign.tokenization import Tokenizer


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[TransformersGenerator]:
    with TransformersGenerator(tiny_model, dtype="float32", device="cpu", batch_size=4) as generator:
        yield generator


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.load(tiny_model)


@pytest.fixture(scope="session")
def starter(starter_index: Path, minilm: Encoder) -> Index:
    return Index.open(starter_index, encoder=minilm)
