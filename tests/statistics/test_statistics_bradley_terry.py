from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from ragalign.errors import DataError
from ragalign.statistics import PairOutcome, fit_bradley_terry

# Davidson (1970), example 2, six brands of chocolate pudding: brands i and j, i preferred, j preferred, neither.
PUDDINGS = [
    (1, 2, 19, 22, 16), (1, 3, 16, 19, 12), (2, 3, 19, 19, 10), (1, 4, 18, 23, 13), (2, 4, 23, 19, 9),
    (3, 4, 19, 20, 15), (1, 5, 13, 19, 18), (2, 5, 16, 20, 12), (3, 5, 16, 15, 17), (4, 5, 17, 14, 16),
    (1, 6, 18, 21, 12), (2, 6, 22, 20, 12), (3, 6, 13, 18, 10), (4, 6, 14, 19, 18), (5, 6, 11, 21, 12),
]  # fmt: skip
WORTHS = [0.1388005, 0.1729985, 0.1617420, 0.1653930, 0.1586805, 0.2023855]
NU = 0.7468147
# Standard errors of the log worths relative to brand 1, from R's PlackettLuce 0.4 (its overview vignette).
STANDARD_ERRORS = {"2": 0.1872, "3": 0.1935, "4": 0.1882, "5": 0.1927, "6": 0.1924}


def puddings() -> list[PairOutcome]:
    comparisons = []
    for first, second, wins, losses, ties in PUDDINGS:
        outcomes = [1.0] * wins + [0.0] * losses + [0.5] * ties
        start = len(comparisons)
        comparisons += [PairOutcome(start + i, str(first), str(second), value) for i, value in enumerate(outcomes)]
    return comparisons


def test_davidsons_worked_example() -> None:
    fit = fit_bradley_terry(puddings(), reference="1")
    worths = np.exp([fit.strengths[str(brand)].value for brand in range(1, 7)])
    # The paper stops its iteration early, hence the fifth digit.
    assert worths / worths.sum() == pytest.approx(WORTHS, abs=3e-5)
    assert math.exp(fit.tie_log_odds) == pytest.approx(NU, abs=3e-5)
    assert fit.n == 745
    for brand, standard_error in STANDARD_ERRORS.items():
        estimate = fit.strengths[brand]
        assert (estimate.high - estimate.low) / 2 / 1.96 == pytest.approx(standard_error, rel=0.05)
    assert fit.strengths["1"].low == fit.strengths["1"].high == 0
    assert next(iter(fit.strengths)) == "6"


def random_comparisons(seed: int, n_prompts: int = 60) -> list[PairOutcome]:
    """Four systems of strengths 0.9, 0.3, -0.2, -1.0 with nu = 0.6, three random pairs per prompt."""
    generator = np.random.default_rng(seed)
    strengths = {"a": 0.9, "b": 0.3, "c": -0.2, "d": -1.0}
    comparisons = []
    for prompt in range(n_prompts):
        for _ in range(3):
            first, second = generator.choice(list(strengths), 2, replace=False)
            half = (strengths[first] - strengths[second]) / 2
            odds = np.exp([-half, math.log(0.6), half])
            outcome = generator.choice([0.0, 0.5, 1.0], p=odds / odds.sum())
            comparisons.append(PairOutcome(prompt, str(first), str(second), float(outcome)))
    return comparisons


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_generic_maximum_likelihood_fit(seed: int) -> None:
    comparisons = random_comparisons(seed)
    names = ["a", "b", "c", "d"]

    def negative_log_likelihood(parameters: np.ndarray) -> float:
        worth = dict(zip(names, np.exp([0.0, *parameters[:3]]), strict=True))
        nu, total = math.exp(parameters[3]), 0.0
        for comparison in comparisons:
            one, other = worth[comparison.first], worth[comparison.second]
            tie = nu * math.sqrt(one * other)
            likelihood = {1.0: one, 0.5: tie, 0.0: other}[comparison.preference or 0.0] / (one + other + tie)
            total -= math.log(likelihood)
        return total

    best = optimize.minimize(negative_log_likelihood, np.zeros(4), method="BFGS", options={"gtol": 1e-7})
    fit = fit_bradley_terry(comparisons, reference="a", n_resamples=10)
    assert [fit.strengths[name].value for name in names[1:]] == pytest.approx(best.x[:3], abs=1e-4)
    assert fit.tie_log_odds == pytest.approx(best.x[3], abs=1e-4)


def test_coverage_of_strength_intervals() -> None:
    n_simulations, covered = 150, 0
    for seed in range(n_simulations):
        fit = fit_bradley_terry(random_comparisons(1000 + seed, 80), reference="a", n_resamples=300)
        covered += fit.strengths["b"].low <= 0.3 - 0.9 <= fit.strengths["b"].high
    assert 0.9 <= covered / n_simulations <= 0.99


def test_intervals_are_clustered_by_prompt() -> None:
    once = random_comparisons(1)
    four_times = [comparison for comparison in once for _ in range(4)]
    one, four = fit_bradley_terry(once, n_resamples=500), fit_bradley_terry(four_times, n_resamples=500)
    for name, estimate in one.strengths.items():
        assert four.strengths[name].low == pytest.approx(estimate.low, abs=1e-6)
        assert four.strengths[name].n == 4 * estimate.n


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from("abcd"), st.lists(st.booleans(), min_size=180, max_size=180))
def test_naming_the_sides_the_other_way_round_changes_nothing(seed: int, reference: str, flips: list[bool]) -> None:
    plain = random_comparisons(seed)
    turned = [
        PairOutcome(c.prompt, c.second, c.first, 1 - (c.preference or 0.0)) if flip else c
        for c, flip in zip(plain, flips, strict=True)
    ]
    one = fit_bradley_terry(plain, reference=reference, n_resamples=5)
    other = fit_bradley_terry(turned, reference=reference, n_resamples=5)
    for name in one.strengths:
        assert one.strengths[name].value == pytest.approx(other.strengths[name].value, abs=1e-6)
        # The model's probabilities do not depend on the reference.
        assert one.probabilities("a", name) == pytest.approx(
            fit_bradley_terry(plain, reference="b", n_resamples=1).probabilities("a", name), abs=1e-6
        )
    assert sum(one.probabilities("a", "d")) == pytest.approx(1)


def test_a_system_that_wins_everything_is_infinitely_strong() -> None:
    comparisons = [PairOutcome(i, "a", other, 1.0) for i in range(30) for other in "bc"]
    comparisons += [PairOutcome(i, "b", "c", [0.0, 0.5, 1.0][i % 3]) for i in range(30)]
    fit = fit_bradley_terry(comparisons, reference="b", n_resamples=200)
    assert fit.strengths["a"].value == math.inf
    assert all(math.isnan(value) for value in fit.probabilities("a", "a"))
    assert fit.strengths["c"].value == pytest.approx(0, abs=1e-6)
    assert -2 < fit.strengths["c"].low < 0 < fit.strengths["c"].high < 2
    assert fit.probabilities("a", "c") == (1.0, 0.0, 0.0)
    assert fit.probabilities("c", "a") == (0.0, 0.0, 1.0)
    assert json.loads(json.dumps(fit.to_dict(), allow_nan=False))["strengths"]["a"]["value"] is None


def test_without_ties_it_is_plain_bradley_terry() -> None:
    # For two systems the strength is the log odds of winning.
    comparisons = [PairOutcome(i, "a", "b", float(i % 4 > 0)) for i in range(40)]
    fit = fit_bradley_terry([*comparisons, PairOutcome(99, "b", "a", None)], reference="b")
    assert fit.strengths["a"].value == pytest.approx(math.log(3), abs=1e-6)
    assert fit.tie_log_odds == -math.inf
    assert (fit.n, fit.n_unscored, fit.strengths["a"].n_unscored) == (40, 1, 1)
    assert fit.probabilities("a", "b") == pytest.approx((0.75, 0.0, 0.25), abs=1e-6)


def test_only_ties() -> None:
    fit = fit_bradley_terry([PairOutcome(i, "a", "b", 0.5) for i in range(5)], n_resamples=20)
    assert [estimate.value for estimate in fit.strengths.values()] == [0, 0]
    assert fit.tie_log_odds == math.inf
    assert fit.probabilities("a", "b") == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("comparisons", "reference", "message"),
    [
        ([], None, "nothing to fit"),
        ([PairOutcome(1, "a", "b", None)], None, "nothing to fit"),
        ([PairOutcome(1, "a", "a", 1.0)], None, "itself"),
        ([PairOutcome(1, "a", "b", 2.0)], None, "between 0 and 1"),
        ([PairOutcome(1, "a", "b", 1.0)], "c", "'c'"),
        ([PairOutcome(1, "a", "b", 1.0), PairOutcome(1, "c", "d", 1.0)], None, "c, d"),
    ],
)
def test_what_cannot_be_fitted_is_refused(comparisons: list[PairOutcome], reference: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_bradley_terry(comparisons, reference=reference)


def test_unknown_system_in_probabilities() -> None:
    fit = fit_bradley_terry([PairOutcome(1, "a", "b", 1.0), PairOutcome(2, "a", "b", 0.0)], n_resamples=5)
    with pytest.raises(DataError, match="'x'"):
        fit.probabilities("a", "x")
