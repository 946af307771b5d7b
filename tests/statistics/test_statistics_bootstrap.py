from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ragalign.errors import ConfigError, DataError
from ragalign.statistics import Estimate, bootstrap, mean, paired_difference
from ragalign.statistics.bootstrap import resample

numbers = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))


def test_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).exponential(size=200)
    ours = mean(values, n_resamples=50_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=50_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    noise = 0.03 * (theirs.high - theirs.low)
    assert ours.low == pytest.approx(theirs.low, abs=noise)
    assert ours.high == pytest.approx(theirs.high, abs=noise)
    assert ours.value == values.mean()


def test_paired_interval_agrees_with_scipy() -> None:
    generator = np.random.default_rng(3)
    difficulty = generator.normal(size=120)
    first, second = difficulty + generator.normal(0.3, 0.5, 120), difficulty + generator.normal(0, 0.5, 120)
    ours = paired_difference(first, second, n_resamples=50_000)
    theirs = stats.bootstrap(
        (first, second),
        lambda one, other, axis: np.mean(one - other, axis=axis),
        paired=True,
        n_resamples=50_000,
        method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval
    noise = 0.03 * (theirs.high - theirs.low)
    assert ours.low == pytest.approx(theirs.low, abs=noise)
    assert ours.high == pytest.approx(theirs.high, abs=noise)
    # Pairing removes the prompts' difficulty, which dominates the two means.
    assert ours.high - ours.low < (mean(first).high - mean(first).low)


def test_exact_bootstrap_distribution_of_three_prompts() -> None:
    # All 27 resamples of (0, 1, 5) can be listed; the mean's distribution is known exactly.
    values = np.array([0.0, 1.0, 5.0])
    listed = np.sort([np.mean([a, b, c]) for a in values for b in values for c in values])
    ours = mean(values, n_resamples=200_000, confidence=0.8)
    assert ours.low == pytest.approx(np.quantile(listed, 0.1, method="inverted_cdf"))
    assert ours.high == pytest.approx(np.quantile(listed, 0.9, method="inverted_cdf"))


def clustered(generator: np.random.Generator, n_prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """1 to 5 samples per prompt that share the prompt's own mean; the true mean is 0."""
    sizes = generator.integers(1, 6, n_prompts)
    prompts = np.repeat(np.arange(n_prompts), sizes)
    return generator.normal(size=n_prompts)[prompts] + generator.normal(0, 0.7, len(prompts)), prompts


def test_coverage_with_clusters() -> None:
    generator = np.random.default_rng(5)
    n_simulations, covered, covered_naively = 600, 0, 0
    for _ in range(n_simulations):
        values, prompts = clustered(generator, 100)
        estimate = mean(values, prompts, n_resamples=600)
        naive = mean(values, n_resamples=600)
        covered += estimate.low <= 0 <= estimate.high
        covered_naively += naive.low <= 0 <= naive.high
    # Binomial noise of 600 simulations is 0.9 points; percentile intervals of 100 prompts lose about one point.
    assert 0.915 <= covered / n_simulations <= 0.975
    assert covered_naively / n_simulations < 0.85


def test_coverage_of_paired_differences() -> None:
    generator = np.random.default_rng(6)
    n_simulations, covered = 600, 0
    for _ in range(n_simulations):
        difficulty = generator.normal(size=150)
        first = difficulty + generator.exponential(0.5, 150)
        second = difficulty + generator.normal(0, 0.5, 150)
        estimate = paired_difference(first, second, n_resamples=600)
        covered += estimate.low <= 0.5 <= estimate.high
    assert 0.92 <= covered / n_simulations <= 0.975


@given(st.lists(numbers, min_size=1, max_size=30), st.floats(0.1, 10), numbers)
def test_unit_and_origin_move_the_interval_along(values: list[float], factor: float, shift: float) -> None:
    plain = mean(values, n_resamples=50)
    moved = mean([value * factor + shift for value in values], n_resamples=50)
    for name in ("value", "low", "high"):
        assert getattr(moved, name) == pytest.approx(getattr(plain, name) * factor + shift, abs=1e-6)
    scaled = plain.scaled(-factor)
    assert (scaled.low, scaled.high) == (plain.high * -factor, plain.low * -factor)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30))
def test_exchanging_the_systems_mirrors_the_difference(pairs: list[tuple[float, float]]) -> None:
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    one = paired_difference(first, second, n_resamples=51)
    other = paired_difference(second, first, n_resamples=51)
    assert one.value == pytest.approx(-other.value, abs=1e-9)
    assert one.low == pytest.approx(-other.high, abs=1e-9)
    assert one.high == pytest.approx(-other.low, abs=1e-9)


@given(st.lists(numbers, min_size=1, max_size=20), st.integers(2, 4))
def test_copies_within_prompts_add_no_certainty(values: list[float], copies: int) -> None:
    once = mean(values, n_resamples=50)
    repeated = mean(np.repeat(values, copies), np.repeat(np.arange(len(values)), copies), n_resamples=50)
    assert repeated.n == copies * once.n
    assert repeated.n_prompts == once.n_prompts
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high), abs=1e-9)


@given(st.lists(st.none() | numbers, max_size=20))
def test_unscored_values_are_counted_and_change_nothing(values: list[float | None]) -> None:
    scored = [value for value in values if value is not None]
    with_gaps, without = mean(values, n_resamples=20), mean(scored, n_resamples=20)
    assert (with_gaps.n, with_gaps.n_unscored) == (len(scored), len(values) - len(scored))
    assert [with_gaps.value, with_gaps.low, with_gaps.high] == pytest.approx(
        [without.value, without.low, without.high], nan_ok=True
    )


@settings(max_examples=30)
@given(st.integers(1, 50), st.integers(1, 300), st.integers(0, 5))
def test_resamples_draw_as_many_prompts_as_there_are(n_prompts: int, n_resamples: int, seed: int) -> None:
    counts = np.concatenate(list(resample(n_prompts, n_resamples, seed)))
    assert counts.shape == (n_resamples, n_prompts)
    assert (counts.sum(axis=1) == n_prompts).all()


def test_any_figure_can_be_bootstrapped() -> None:
    # The mean of two aspects' means, where the aspects cover different prompts.
    generator = np.random.default_rng(7)
    first, second = generator.normal(4, 1, 300), generator.normal(2, 1, 100)

    def figure(weights: np.ndarray) -> np.ndarray:
        return (
            weights[:, :300] @ first / weights[:, :300].sum(1) + weights[:, 300:] @ second / weights[:, 300:].sum(1)
        ) / 2

    low, high = bootstrap(figure, 400)
    standard_error = math.sqrt(first.var() / 300 + second.var() / 100) / 2
    assert (high - low) / 2 == pytest.approx(1.96 * standard_error, rel=0.05)


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(8).normal(size=50)
    assert mean(values, seed=1) == mean(values, seed=1)
    assert mean(values, seed=1).low != mean(values, seed=2).low


def test_nothing_scored_has_no_figure_but_says_how_many_lack_one() -> None:
    estimate = mean([None, math.nan])
    assert math.isnan(estimate.value)
    assert (estimate.n, estimate.n_unscored) == (0, 2)
    assert json.loads(json.dumps(estimate.to_dict(), allow_nan=False))["value"] is None


def test_estimate_as_json() -> None:
    estimate = Estimate(0.5, 0.4, 0.6, 10, 2, "Wilson", n_prompts=10)
    assert estimate.to_dict() == {
        "value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "n_unscored": 2, "n_prompts": 10, "confidence": 0.95,
        "method": "Wilson",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: mean([1.0], [1, 2]), DataError),
        (lambda: mean([math.inf]), DataError),
        (lambda: mean(["x"]), DataError),  # type: ignore[list-item]
        (lambda: mean(np.zeros((2, 2))), DataError),
        (lambda: paired_difference([1.0], [1.0, 2.0]), DataError),
        (lambda: mean([1.0], confidence=95), ConfigError),
        (lambda: mean([1.0], n_resamples=0), ConfigError),
    ],
)
def test_bad_input_is_refused(call: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        call()  # type: ignore[operator]


def test_ten_thousand_resamples_of_805_prompts_in_two_seconds() -> None:
    values = np.random.default_rng(9).random((805, 2))
    started = time.perf_counter()
    paired_difference(values[:, 0], values[:, 1])
    assert time.perf_counter() - started < 2


def test_memory_does_not_grow_with_resamples() -> None:
    # 2,000 resamples of 20,000 prompts would be 320 MB at once.
    code = (
        "import resource, numpy as np; from ragalign.statistics import mean;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "mean(np.random.default_rng(0).random(20_000), n_resamples=2_000);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150_000  # KiB
