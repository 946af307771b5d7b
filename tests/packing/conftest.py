"""Tokenizers, loaded once per session, and pools."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from fixtures import tokenizers
from fixtures.tokenizers import Case

from ragalign.pool import Pool
from ragalign.tokenization import Tokenizer


@pytest.fixture(scope="session")
def load_case(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], Case]:
    @cache
    def load(name: str) -> Case:
        shared = request.getfixturevalue("shared_data") if name in tokenizers.NEED_SHARED_DATA else Path()
        reference = tokenizers.ALL[name](tmp_path_factory.mktemp("tokenizer") / name, shared)
        return Case(name, Tokenizer.wrap(reference), reference)

    return load


@pytest.fixture(scope="session", params=list(tokenizers.ALL))
def case(request: pytest.FixtureRequest, load_case: Callable[[str], Case]) -> Case:
    """Each kind of tokenizer."""
    return load_case(request.param)


@pytest.fixture(scope="session")
def pool() -> Pool:
    """The pool that comes with the package; the real ones beside the checkout where they are."""
    from ragalign.recipes import data_folder

    found = Pool.load(data_folder() / "starter.jsonl")
    shared = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "data" / "pools"
    for path in sorted(shared.glob("*.json*")) if shared.is_dir() else ():
        found = found.union(Pool.load(path))
    return found
