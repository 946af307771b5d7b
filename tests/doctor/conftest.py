"""The command line for all of its tests."""

from __future__ import annotations

import pytest
from fixtures.command import Command


@pytest.fixture
def ragalign(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `ragalign` in this process."""
    return Command(monkeypatch, capsys)
