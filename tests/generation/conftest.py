"""Prompts and the second engine for the generation tests; the first is shared by all rooms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ragalign.generation import TransformersGenerator
from ragalign.types import Prompt

PromptMaker = Callable[..., Prompt]


@pytest.fixture(scope="session")
def transformers_engine(tiny_model: Path) -> TransformersGenerator:
    return TransformersGenerator(tiny_model, dtype="float32", device="cpu", batch_size=4)


@pytest.fixture(scope="session")
def make_prompt(tiny_model: Path) -> PromptMaker:
    """Builds a prompt from text as the packer does: the tokenizer's ids with BOS."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def make(text: str, stop: tuple[str, ...] = ()) -> Prompt:
        ids = np.array(tokenizer(text).input_ids, dtype=np.int32)
        return Prompt(pieces=(text,), ids=ids, stop=stop, n_special_tokens=1)

    return make


@pytest.fixture(scope="session")
def make_prompt_of() -> Callable[[int, int], Prompt]:
    """Builds a prompt of exactly `length` ordinary tokens that starts like no other `key`."""

    def make(length: int, key: int) -> Prompt:
        ids = np.random.default_rng(key).integers(260, 500, size=length, dtype=np.int32)
        return Prompt(pieces=("",), ids=ids)

    return make
