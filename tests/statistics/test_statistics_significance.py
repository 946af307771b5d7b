from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ragalign.errors import ConfigError, DataError
from ragalign.statistics import detectable_difference, holm, mean, paired_power, prompts_needed, sign_test

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def test_sign_test_on_a_textbook_example() -> None:
    # J. H. Zar, Biostatistical Analysis: left hind legs of deer longer in 8 of 10, two-sided p = 0.109375.
    result = sign_test([1.0] * 8 + [-1.0] * 2)
    assert result.p_value == pytest.approx(0.109375)
    assert (result.n_positive, result.n_negative, result.n_ties) == (8, 2, 0)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 10), st.integers(0, 5))
def test_sign_test_agrees_with_the_binomial(plus: int, minus: int, ties: int, gaps: int) -> None:
    result = sign_test([0.3] * plus + [-2.0] * minus + [0.0] * ties + [None] * gaps)
    tail = stats.binom.cdf(min(plus, minus), plus + minus, 0.5)
    assert result.p_value == pytest.approx(min(1.0, 2 * tail))
    assert (result.n_ties, result.n_unscored) == (ties, gaps)
    mirrored = sign_test([-0.3] * plus + [2.0] * minus)
    assert mirrored.p_value == result.p_value


def test_samples_of_a_prompt_have_one_vote() -> None:
    # 0.1 + 0.2 - 0.3 is not 0 in floating point; the prompt is tied all the same.
    result = sign_test([0.5, 0.5, -0.5, 0.1, 0.2, -0.3, -1, None], ["a", "a", "a", "b", "b", "b", "c", "c"])
    assert (result.n_positive, result.n_negative, result.n_ties, result.n_unscored) == (1, 1, 1, 1)
    assert result.to_dict()["p_value"] == 1.0


def test_sign_test_keeps_its_level() -> None:
    generator = np.random.default_rng(21)
    rejected = sum(sign_test(generator.normal(size=40)).p_value <= 0.05 for _ in range(500))
    assert rejected / 500 < 0.07


def test_holm_on_a_published_example() -> None:
    # The four-hypothesis example of the Wikipedia article: H4 and H1 are rejected at 0.05, H3 and H2 are not.
    adjusted = holm({"H1": 0.01, "H2": 0.04, "H3": 0.03, "H4": 0.005})
    assert adjusted == pytest.approx({"H1": 0.03, "H2": 0.06, "H3": 0.06, "H4": 0.02})
    assert list(adjusted) == ["H1", "H2", "H3", "H4"]


@given(p_values)
def test_holm_is_the_closure_of_bonferroni(values: list[float]) -> None:
    # An independent definition: a hypothesis falls if every set that holds it falls by Bonferroni.
    named = {str(i): value for i, value in enumerate(values)}
    adjusted = holm(named)
    for name in named:
        sets = [chosen for size in range(1, len(named) + 1) for chosen in combinations(named, size) if name in chosen]
        closed = max(min(1.0, len(chosen) * min(named[member] for member in chosen)) for chosen in sets)
        assert adjusted[name] == pytest.approx(closed)


def test_holm_of_nothing_is_nothing() -> None:
    assert holm({}) == {}
    with pytest.raises(DataError, match="depth"):
        holm({"depth": 1.2})


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_prompts_needed_for_cohens_effects(effect: float, n: int) -> None:
    # Two-sided paired t-test, alpha 0.05, power 0.8: G*Power 3.1's sample sizes for dz = 0.2, 0.5, 0.8.
    assert prompts_needed(effect, 1.0) == n
    assert prompts_needed(-effect * 100, 100.0) == n


@given(st.floats(0.05, 3), st.floats(0.1, 10), st.floats(0.3, 0.95))
def test_needed_is_the_fewest_prompts(difference: float, sd: float, power: float) -> None:
    n = prompts_needed(difference, sd, power=power)
    assert paired_power(n, difference, sd) >= power
    if n > 2:
        assert paired_power(n - 1, difference, sd) < power
    assert detectable_difference(n, sd, power=power) <= difference * (1 + 1e-6)


def test_large_samples_approach_the_normal_formula() -> None:
    z = stats.norm.isf(0.025) + stats.norm.isf(0.2)
    assert prompts_needed(0.01, 0.5) == pytest.approx((z * 0.5 / 0.01) ** 2, rel=1e-3)


def test_power_is_what_simulations_find() -> None:
    generator = np.random.default_rng(22)
    n, shown = prompts_needed(0.15, 0.45), 0
    for _ in range(500):
        estimate = mean(generator.normal(0.15, 0.45, n), n_resamples=400)
        shown += estimate.low > 0
    assert shown / 500 == pytest.approx(0.8, abs=0.06)


def test_without_difference_power_is_alpha() -> None:
    assert paired_power(50, 0.0, 1.0, alpha=0.01) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_power(1, 0.1, 1),
        lambda: paired_power(10, 0.1, 0),
        lambda: prompts_needed(0, 1),
        lambda: prompts_needed(1e-9, 1),
        lambda: prompts_needed(0.1, 1, power=80),
        lambda: prompts_needed(0.1, 1, alpha=0),
        lambda: detectable_difference(1, 1),
        lambda: detectable_difference(10, 1, power=0.01),
    ],
)
def test_impossible_power_questions_are_refused(call: object) -> None:
    with pytest.raises(ConfigError):
        call()  # type: ignore[operator]
