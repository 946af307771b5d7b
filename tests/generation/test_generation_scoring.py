"""Log-probabilities of given tokens: sharing beginnings changes the work and not the figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.errors import ConfigError, GenerationError
from ragalign.generation import TransformersGenerator, VllmGenerator
from ragalign.generation._scoring import MIN_SHARED, group_by_beginning


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[TransformersGenerator]:
    with TransformersGenerator(tiny_model, dtype="float32", device="cpu", batch_size=3) as generator:
        yield generator


def made(seed: int, vocabulary: int) -> tuple[list[list[int]], list[int]]:
    """Sequences with beginnings in common, of different lengths: some long, some short, one alone."""
    draw = np.random.default_rng(seed)
    beginnings = [draw.integers(5, vocabulary, n).tolist() for n in (60, 40, 3)]
    sequences, starts = [], []
    for number in range(14):
        beginning = beginnings[number % 3]
        question = draw.integers(5, vocabulary, draw.integers(1, 12)).tolist()
        answer = draw.integers(5, vocabulary, draw.integers(1, 20)).tolist()
        sequences.append([*beginning, *question, *answer])
        starts.append(len(beginning) + len(question))
    return [*sequences, sequences[0], [7, 8, 9]], [*starts, starts[0], 1]


def plain(folder: Path, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    with torch.inference_mode():
        for ids, start in zip(sequences, starts, strict=True):
            logprobs = model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)
            found.append(np.array([float(logprobs[place - 1, ids[place]]) for place in range(start, len(ids))]))
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_what_one_sequence_at_a_time_gives(
    seed: int, engine: TransformersGenerator, vllm_engine: VllmGenerator, tiny_model: Path
) -> None:
    sequences, starts = made(seed, engine.vocabulary_size or 0)
    assert any(group.n_shared >= MIN_SHARED for group in group_by_beginning(sequences, starts))
    expected = plain(tiny_model, sequences, starts)
    for generator, tolerance in ((engine, 1e-4), (vllm_engine, 5e-3)):
        found = dict(generator.token_logprobs(sequences, starts))
        assert sorted(found) == list(range(len(sequences)))
        for place, values in enumerate(expected):
            assert found[place].dtype == np.float32
            np.testing.assert_allclose(found[place], values, atol=tolerance)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=50)
def test_groups_cover_everything_once_and_share_only_what_is_common(seed: int) -> None:
    sequences, starts = made(seed, 9)
    groups = group_by_beginning(sequences, starts)
    assert sorted(place for group in groups for place in group.members) == list(range(len(sequences)))
    for group in groups:
        assert len({tuple(sequences[place][: group.n_shared]) for place in group.members}) == 1
        assert all(group.n_shared < starts[place] for place in group.members)


def test_sharing_saves_the_beginnings() -> None:
    """The tokens that are run are those of each beginning once, and the rests."""
    beginnings = [[number] * 100 for number in (1, 2)]
    sequences = [[*beginnings[n % 2], 3, n, 4] for n in range(10)]
    groups = group_by_beginning(sequences, [102] * 10)
    assert [(len(group.members), group.n_shared) for group in groups] == [(5, 101), (5, 101)]


def test_wrong_arguments_are_refused(engine: TransformersGenerator, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="start must be at least 1"):
        engine.token_logprobs([[1, 2]], [2])
    with pytest.raises(GenerationError, match="accepts at most"):
        engine.token_logprobs([[5] * 5000], [1])
    with TransformersGenerator(tiny_model, dtype="float32", device="cpu") as closed:
        pass
    with pytest.raises(GenerationError, match="closed"):
        list(closed.token_logprobs([[1, 2]], [1]))
