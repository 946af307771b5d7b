"""Both ways to write pieces into an engine's cache write the same."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ragalign.reuse import writing
from ragalign.reuse.eight_bit import Precision, packed, unpacked
from ragalign.reuse.pieces import Piece
from ragalign.reuse.rotation import Mover, Rotation
from ragalign.reuse.writing import AllAtOnce, FewLayers, Writer

LAYERS, HEADS, FEATURES, SLOTS = 6, 2, 8, 64
MOVERS = [
    Mover(Rotation(frequencies), 100, torch.device("cpu"))
    for frequencies in ((1.0, 0.1, 0.01, 0.001), (0.5, 0.2, 0.1, 0.05))
]


def write(kind: type[Writer], dtype: Any, pieces: list[Piece], places: list[tuple[slice, int]]) -> tuple[Any, Writer]:
    """What a cache holds after the writer: [layers, 2, slots, heads, features]."""
    cache = torch.zeros(LAYERS, 2, SLOTS, HEADS, FEATURES, dtype=dtype)

    def update(layer: Any, keys: Any, values: Any, kv_cache: Any, slots: Any) -> None:
        kv_cache[0, slots], kv_cache[1, slots] = keys, values

    slots = torch.randperm(SLOTS, generator=torch.Generator().manual_seed(0))
    n = sum(tokens.stop - tokens.start for tokens, _ in places)
    writer = kind([SimpleNamespace(kv_cache=cache[layer]) for layer in range(LAYERS)], [update] * LAYERS, dtype, slots)
    for piece, (tokens, shift) in zip(pieces, places, strict=True):
        old = torch.arange(tokens.start, tokens.stop)
        turns = [partial(mover.apply_, turn=mover.turn(old, old + shift)) for mover in MOVERS]
        writer.add(piece, tokens, [(turns[0], [0, 1, 2, 4, 5]), (turns[1] if shift else None, [3])])
    writer.finish()
    assert writer.n_tokens == n
    return cache, writer


@pytest.mark.parametrize("precision", ["model", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_bytes", [1, 1200, 10**6])
def test_a_few_layers_and_all_at_once_write_the_same(
    precision: Precision, dtype: Any, n_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_AT_ONCE", n_bytes)
    made = torch.Generator().manual_seed(1)
    lengths, places = (17, 5, 20), [(slice(0, 17), 3), (slice(2, 4), 0), (slice(1, 20), 40)]
    kept = [torch.randn(2, LAYERS, n, HEADS, FEATURES, generator=made).to(dtype) for n in lengths]
    pieces = [packed(kv, precision) for kv in kept]
    before = [piece.kv.clone() for piece in pieces]
    by_layer, first = write(FewLayers, dtype, pieces, places)
    at_once, second = write(AllAtOnce, dtype, pieces, places)
    assert torch.equal(by_layer, at_once)
    assert first.n_bytes == second.n_bytes == 38 * 2 * LAYERS * HEADS * FEATURES * kept[0].element_size()
    # Values are written as they are, and what is kept is not turned itself.
    values = torch.cat([unpacked(p, dtype)[1, 0, tokens] for p, (tokens, _) in zip(pieces, places, strict=True)])
    slots = torch.randperm(SLOTS, generator=torch.Generator().manual_seed(0))[:38]
    assert torch.equal(by_layer[0, 1, slots], values)
    assert all(torch.equal(piece.kv, kv) for piece, kv in zip(pieces, before, strict=True))


def test_one_rotation_for_all_layers_is_the_same_as_for_each() -> None:
    kv = torch.randn(2, LAYERS, 6, HEADS, FEATURES, generator=torch.Generator().manual_seed(2))
    turn = partial(MOVERS[0].apply_, turn=MOVERS[0].turn(torch.arange(6), torch.arange(6) + 9))
    found = []
    for turns in ([(turn, range(LAYERS))], [(turn, [0]), (turn, range(1, LAYERS))]):
        writer = AllAtOnce(
            [SimpleNamespace(kv_cache=None)] * LAYERS,
            [lambda _, keys, values, __, ___: found.append((keys.clone(), values.clone()))] * LAYERS,
            torch.float32,
            torch.arange(6),
        )
        writer.add(Piece(kv), slice(0, 6), turns)
        writer.finish()
    for (keys, values), (same_keys, same_values) in zip(found[:LAYERS], found[LAYERS:], strict=True):
        assert torch.equal(keys, same_keys)
        assert torch.equal(values, same_values)


@given(st.sets(st.integers(0, 30)).map(sorted), st.integers(1, 40))
def test_layers_are_written_once_each_in_short_runs(numbers: list[int], most: int) -> None:
    runs = list(writing._runs(numbers, most))
    assert [number for first, stop in runs for number in range(first, stop)] == numbers
    assert all(0 < stop - first <= most for first, stop in runs)
    for (first, stop), (after, _) in pairwise(runs):
        assert stop < after or stop - first == most, "no more of them than needed"
