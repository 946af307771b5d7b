from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ragalign.errors import ConfigError, DataError
from ragalign.statistics import position_bias, proportion, shares, wilson

preferences = st.lists(st.none() | st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), max_size=40)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    # R. G. Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3.
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(n: int, share: float, confidence: float) -> None:
    successes = round(share * n)
    theirs = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    low, high = wilson(successes, n, confidence)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= low <= successes / n <= high <= 1


def test_wilson_covers_at_the_extremes() -> None:
    # Exact coverage, summed over all outcomes; a normal interval covers 0.01 of 100 in 63 % of samples.
    n = 100
    intervals = [wilson(successes, n) for successes in range(n + 1)]
    for truth in (0.01, 0.03, 0.5, 0.95, 0.99):
        mass = stats.binom.pmf(np.arange(n + 1), n, truth)
        coverage = sum(p for p, (low, high) in zip(mass, intervals, strict=True) if low <= truth <= high)
        assert coverage > 0.915, truth


@pytest.mark.parametrize(("rate", "n_prompts"), [(0.5, 80), (0.97, 80), (0.995, 60)])
def test_coverage_of_clustered_proportions(rate: float, n_prompts: int) -> None:
    # Five samples per prompt, whose success rates differ strongly between prompts (beta, intra-class 0.5).
    generator = np.random.default_rng(11)
    prompts = np.repeat(np.arange(n_prompts), 5)
    n_simulations, covered = 500, 0
    for _ in range(n_simulations):
        per_prompt = generator.beta(rate, 1 - rate, n_prompts)
        flags = (generator.random(len(prompts)) < per_prompt[prompts]).astype(float)
        estimate = proportion(flags, prompts, n_resamples=500)
        covered += estimate.low <= rate <= estimate.high
    assert covered / n_simulations >= 0.91


def test_proportion_says_how_its_interval_was_made() -> None:
    flags = [1, 0] * 20
    assert proportion(flags).method == "Wilson"
    assert proportion(flags).low == pytest.approx(wilson(20, 40)[0])
    assert "bootstrap" in proportion(flags, [i // 4 for i in range(40)]).method
    always = proportion([1] * 40, [i // 4 for i in range(40)])
    assert (always.low, always.high) == wilson(10, 10)
    assert (always.n, always.n_prompts) == (40, 10)


@given(preferences)
def test_shares_count_every_scored_comparison_once(values: list[float | None]) -> None:
    scored = [value for value in values if value is not None]
    result = shares(values, n_resamples=20)
    assert result.win.n == result.net.n == len(scored)
    assert result.win.n_unscored == len(values) - len(scored)
    if not scored:
        assert math.isnan(result.win.value)
        return
    assert result.win.value == sum(value > 0.5 for value in scored) / len(scored)
    assert result.tie.value == scored.count(0.5) / len(scored)
    assert result.win.value + result.tie.value + result.lose.value == pytest.approx(1)
    assert result.net.value == pytest.approx(result.win.value - result.lose.value)
    mirrored = shares([None if value is None else 1 - value for value in values], n_resamples=20)
    assert mirrored.lose.value == result.win.value


def test_shares_of_recorded_judgements(shared_data: Path) -> None:
    # 1,500 recorded comparisons, five samples for each of 300 prompts: 1176 wins, 73 draws, 251 losses.
    [path] = shared_data.glob("ica/*_icl-oasst*_vs_davinci003_autoeval.jsonl")
    lines = [json.loads(line)["autoeval_text_list"] for line in path.read_text("utf-8").splitlines()]
    values, prompts = [], []
    for number, texts in enumerate(lines):
        for text in texts:
            ours, theirs = (float(part) for part in text.split("\n")[0].split(" ")[:2])
            values.append(0.5 + 0.5 * float(np.sign(ours - theirs)))
            prompts.append(number)
    result = shares(values, prompts)
    assert [round(part.value * 1500) for part in (result.win, result.tie, result.lose)] == [1176, 73, 251]
    assert result.win.n_prompts == 300
    naive = shares(values)
    assert result.win.high - result.win.low > 1.2 * (naive.win.high - naive.win.low)


def test_a_judge_that_always_prefers_the_first_answer() -> None:
    bias = position_bias([1.0] * 30, [0.0] * 30)
    assert bias.consistency.value == 0
    assert bias.first_position_rate.value == 1
    assert bias.first_position_rate.high == 1
    assert bias.first_position_rate.low > 0.85
    assert bias.first_position_rate.n == 60
    assert bias.first_position_rate.n_prompts == 30


def test_position_bias_by_hand() -> None:
    # consistent win, consistent tie, first twice, tie then loss, one order unscored
    bias = position_bias([1, 0.5, 1, 0.5, None], [1, 0.5, 0, 0, 1])
    assert bias.consistency.value == 2 / 4
    assert (bias.consistency.n, bias.consistency.n_unscored) == (4, 1)
    # decided judgements: first, second, first, first, first (model second and lost), second (unscored pair's other)
    assert bias.first_position_rate.value == pytest.approx(4 / 6)
    assert bias.n_ties == 3


@given(st.lists(st.tuples(*[st.none() | st.sampled_from([0.0, 0.5, 1.0])] * 2), max_size=30))
def test_position_bias_is_the_same_seen_from_the_other_model(pairs: list[tuple[float | None, float | None]]) -> None:
    def flip(value: float | None) -> float | None:
        return None if value is None else 1 - value

    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    ours = position_bias(first, second)
    theirs = position_bias([flip(value) for value in second], [flip(value) for value in first])
    for name in ("consistency", "first_position_rate"):
        assert getattr(ours, name).value == pytest.approx(getattr(theirs, name).value, nan_ok=True)
    assert ours.n_ties == theirs.n_ties


def test_unbiased_judge_has_rate_one_half() -> None:
    generator = np.random.default_rng(12)
    noise = generator.integers(0, 2, (4000, 2)).astype(float)
    bias = position_bias(noise[:, 0], noise[:, 1], [f"prompt {i // 2}" for i in range(4000)])
    assert bias.first_position_rate.low < 0.5 < bias.first_position_rate.high
    assert bias.to_dict()["first_position_rate"]["n"] == 8000


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: wilson(3, 2), ConfigError),
        (lambda: wilson(-1, 2), ConfigError),
        (lambda: wilson(1, 2, 1.0), ConfigError),
        (lambda: proportion([0.5]), DataError),
        (lambda: shares([1.5]), DataError),
        (lambda: position_bias([1], [1, 0]), DataError),
        (lambda: position_bias([1], [1], ["a", "b"]), DataError),
    ],
)
def test_bad_shares_are_refused(call: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        call()  # type: ignore[operator]
