"""One real tokenizer for the planning tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import tokenizers

from ragalign.tokenization import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.wrap(tokenizers.llama_3_like(tmp_path_factory.mktemp("tokenizer"), Path()))
