"""New pieces are recorded as the engine computes them, however it cuts them into steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ragalign.reuse.recording import Capture, Recorder, slots_of

N_LAYERS, BLOCK, HEADS, FEATURES = 3, 4, 2, 5
CPU = torch.device("cpu")


@dataclass
class Engine:
    """Computes known keys and values, in steps, at places that are shuffled."""

    lengths: list[int]  # tokens of each request
    starts: list[int]  # where its piece begins; it ends with the request
    recorder: Recorder = field(default_factory=lambda: Recorder(N_LAYERS, BLOCK, CPU))
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(sum(self.lengths))
        n_blocks = [-(-n // BLOCK) for n in self.lengths]
        order = iter(torch.randperm(sum(n_blocks)).tolist())
        self.blocks = [tuple(next(order) for _ in range(n)) for n in n_blocks]
        self.kv = [torch.randn(2, N_LAYERS, n, HEADS, FEATURES) for n in self.lengths]

    def capture(self, number: int, first: int, end: int) -> Capture:
        start, stop = self.starts[number], self.lengths[number]
        return Capture(
            str(number), f"piece {number}", start, stop, max(start, first), max(start, end), self.blocks[number]
        )

    def step(self, parts: list[tuple[int, int, int]], *, without: int = -1) -> None:
        """Compute tokens [first, end) of each request."""
        self.recorder.expect([self.capture(*part) for part in parts])
        computed = [part for part in parts if part[0] != without]
        slots = torch.cat([slots_of(self.blocks[n], first, end, BLOCK, CPU) for n, first, end in computed])
        order = torch.randperm(len(slots))
        for layer in range(N_LAYERS):
            key, value = (
                torch.cat([self.kv[n][kind, layer, first:end] for n, first, end in computed])[order] for kind in (0, 1)
            )
            self.recorder.record(layer, key, value, slots[order])
        self.kept |= dict(self.recorder.finish())
        assert not self.recorder.is_recording

    def piece(self, number: int) -> torch.Tensor:
        return self.kv[number][:, :, self.starts[number] :]


requests = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 12), st.lists(st.integers(1, 9))), min_size=1, max_size=5
)


@given(requests)
def test_pieces_are_what_was_computed_in_whatever_steps(asked: list[tuple[int, int, list[int]]]) -> None:
    engine = Engine([start + n for start, n, _ in asked], [start for start, _, _ in asked])
    done = [0] * len(asked)
    cuts = [iter(cuts) for _, _, cuts in asked]
    while any(n < length for n, length in zip(done, engine.lengths, strict=True)):
        parts = []
        for number, length in enumerate(engine.lengths):
            if done[number] < length:
                end = min(length, done[number] + next(cuts[number], length))
                parts.append((number, done[number], end))
                done[number] = end
        engine.step(parts)
    assert sorted(engine.kept) == sorted(f"piece {number}" for number in range(len(asked)))
    for number in range(len(asked)):
        assert torch.equal(engine.kept[f"piece {number}"], engine.piece(number))


def test_a_request_that_begins_again_is_recorded_again() -> None:
    engine = Engine([10], [3])
    engine.step([(0, 0, 7)])
    engine.kv[0][:, :, 3:7] += 1  # other values than before the preemption
    engine.step([(0, 0, 5)])
    engine.step([(0, 5, 10)])
    assert torch.equal(engine.kept["piece 0"], engine.piece(0))


def test_a_piece_with_a_gap_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine([10, 8], [0, 0])
    engine.step([(0, 0, 4), (1, 0, 4)])
    engine.step([(0, 4, 7), (1, 4, 6)], without=0)  # its tokens were not among those of the step
    engine.step([(0, 7, 10), (1, 6, 8)])
    assert list(engine.kept) == ["piece 1"]
    assert "piece 0" in caplog.text


def test_what_was_recorded_of_a_request_that_ended_is_discarded() -> None:
    engine = Engine([10], [0])
    engine.step([(0, 0, 4)])
    engine.recorder.forget(["0", "unknown"])
    engine.step([(0, 4, 10)])
    assert engine.kept == {}
