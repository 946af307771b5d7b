"""What the asynchronous engine does to its own process; the rest is tested through the service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ragalign.generation.vllm_async import _leave_processor


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("chosen", "n_threads"), [(None, 1), ("2", 2)])
def test_the_processor_is_left_to_an_engine_on_it(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, n_threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert _leave_processor() == 2
    assert torch.get_num_threads() == n_threads
