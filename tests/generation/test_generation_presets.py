from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.generation.presets import PRESETS, decoding_preset, validate
from ragalign.types import Decoding


@pytest.mark.parametrize(
    ("name", "temperature", "repetition_penalty", "max_tokens"),
    [
        ("greedy", 0.0, 1.0, 1024),
        ("urial", 0.0, 1.1, 2048),
        ("ica", 0.7, 1.0, 1000),
        ("icl-alignment", 0.0, 1.15, 2048),
        ("icl-alignment-moe", 0.5, 1.0, 2048),
    ],
)
def test_presets_carry_the_published_values(
    name: str, temperature: float, repetition_penalty: float, max_tokens: int
) -> None:
    preset = decoding_preset(name)
    assert preset == Decoding(temperature=temperature, repetition_penalty=repetition_penalty, max_tokens=max_tokens)
    validate(preset)


@pytest.mark.parametrize("name", ["urial", "icl-alignment"])
def test_each_penalty_can_be_kept_off_the_prompt(name: str) -> None:
    published, ours = decoding_preset(name), decoding_preset(f"{name}-output")
    assert ours.output_repetition_penalty == published.repetition_penalty
    assert replace(ours, output_repetition_penalty=1.0) == replace(published, repetition_penalty=1.0)
    validate(ours)


def test_every_preset_is_tested_above() -> None:
    names = ["greedy", "ica", "icl-alignment", "icl-alignment-moe", "icl-alignment-output", "urial", "urial-output"]
    assert sorted(PRESETS) == names


def test_the_output_is_not_punished_twice() -> None:
    with pytest.raises(ConfigError, match="would penalise the output twice; set one of them to 1"):
        validate(replace(decoding_preset("urial"), output_repetition_penalty=1.1))


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no decoding preset 'uriel'; use one of greedy, urial, ica"):
        decoding_preset("uriel")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("n", 0),
        ("seed", -1),
        ("seed", 0.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("output_repetition_penalty", 0.0),
        ("presence_penalty", -2.5),
        ("frequency_penalty", 2.5),
        ("stop", "# Query"),
        ("stop", ("",)),
        ("stop", (1,)),
    ],
)
def test_values_out_of_range_name_their_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^decoding: {field} must be "):
        validate(replace(Decoding(), **{field: value}))


@given(
    st.builds(
        Decoding,
        temperature=st.floats(0, 2),
        top_p=st.floats(0, 1, exclude_min=True),
        max_tokens=st.integers(1, 10**6),
        n=st.integers(1, 100),
        seed=st.none() | st.integers(0, 2**31),
        repetition_penalty=st.floats(0, 10, exclude_min=True),
        presence_penalty=st.floats(-2, 2),
        frequency_penalty=st.floats(-2, 2),
        stop=st.tuples(st.text(min_size=1)),
    )
)
def test_values_in_range_pass(decoding: Decoding) -> None:
    validate(decoding)
