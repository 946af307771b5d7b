"""AlpacaEval's length-controlled win rate: the expected win rate if both answers were equally long.

A logistic regression explains the preference by the difference in length, the instruction's difficulty for the
model, and a constant; the win rate is its mean prediction at equal length (Dubois et al. 2024,
arXiv:2404.04475). Two of the upstream models are implemented: ``length_controlled_v1``, which the
leaderboard uses and which needs the difficulties of the 805 instructions, and ``length_controlled_minimal``, without
difficulties and regularising rows, for any other set of prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign._optional import require
from ragalign.errors import ConfigError, DataError

V1 = "length_controlled_v1"
MINIMAL = "length_controlled_minimal"
C_GRID = tuple(float(c) for c in np.logspace(-4, 4, 10))
"""Inverse regularisation strengths for cross-validation: scikit-learn's default for `LogisticRegressionCV`."""

_GAMED_WEIGHT = 0.1  # upstream's regularisation of 0.2, split between two gamed baselines
_N_FOLDS = 5
_SEED = 123
_N_RESAMPLES = 300

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GlmWeights:
    """Coefficients of the regression."""

    length: float
    difficulty: float
    constant: float


@dataclass(frozen=True, slots=True)
class GamedRows:
    """Comparisons of the baseline with brief and wordy versions of itself, which regularise the regression.

    Arrays of shape [n]: the length feature tanh(delta / std), the difficulty, the preference in 0 to 1.
    """

    length: Floats
    difficulty: Floats
    preference: Floats


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A length-controlled win rate.

    Attributes:
        glm: the regression's upstream name.
        win_rate: mean prediction at equal length, in percent.
        standard_error: standard error of that mean over prompts, in percent; None where all predictions are equal.
        weights: the coefficients.
        resampled: the win rate on resamples of the prompts, in percent: refitted with the same C, the same
            gamed rows and the same length scale; published weights are kept.
        c: inverse regularisation strength of the fit; None with published weights.
    """

    glm: str
    win_rate: float
    standard_error: float | None
    weights: GlmWeights
    resampled: tuple[float, ...] = ()
    c: float | None = None


@dataclass(frozen=True, slots=True)
class LengthControl:
    """How to control for length.

    Attributes:
        weights: published coefficients by model; None fits the regression.
        difficulty: instruction difficulties by row position, shape [n]; None fits the minimal model.
        gamed: regularising rows; None fits without them.
        c: inverse regularisation strength; None chooses it by cross-validation.
        by_name: whether the minimal model was requested by name, so that its figure can have the leaderboard's name
            even on the leaderboard's own instructions.

    Raises:
        ConfigError: the parts cannot be combined (see `check_parts`).
    """

    weights: Mapping[str, GlmWeights] | None = None
    difficulty: Floats | None = None
    gamed: GamedRows | None = None
    c: float | None = None
    by_name: bool = False

    def __post_init__(self) -> None:
        check_parts(self.weights is not None, self.difficulty is not None, self.gamed is not None, self.c)

    def control(
        self, models: Sequence[str], preferences: Floats, delta_lengths: Floats, positions: NDArray[np.int64]
    ) -> LengthControlled:
        """The length-controlled win rate of one model.

        Args:
            models: possible names of the model in the published weights, the most likely first.
            preferences: shape [n], 0 to 1, NaN where unscored.
            delta_lengths: shape [n], characters of the baseline's answer minus characters of the model's.
            positions: shape [n], rows of the difficulties.

        Raises:
            DataError: the win rate cannot be computed; the message gives the reason.
        """
        difficulty = None
        if self.difficulty is not None:
            if positions.max(initial=-1) >= len(self.difficulty):
                n = len(self.difficulty)
                raise DataError(f"row {positions.max() + 1} has no instruction difficulty: the file has {n}")
            difficulty = self.difficulty[positions]
        if self.weights is not None and difficulty is not None:
            found = next((self.weights[name] for name in models if name in self.weights), None)
            if found is None:
                raise DataError(f"no weights for the model {' or '.join(models)}")
            return _controlled(V1, found, difficulty, len(preferences))
        problem = _Problem.of(preferences, delta_lengths, difficulty, self.gamed)
        weights, c = problem.fit(self.c)
        name = V1 if difficulty is not None else MINIMAL
        return _controlled(name, weights, difficulty, len(preferences), c, problem)


def check_parts(weights: bool, difficulty: bool, gamed: bool, c: float | None) -> None:
    """Check that the parts make one of the two models: difficulties require weights or gamed rows.

    Raises:
        ConfigError: a part is missing or superfluous.
    """
    if weights and gamed:
        raise ConfigError("give published weights or gamed rows, not both")
    if (weights or gamed) and not difficulty:
        raise ConfigError(f"{'published weights' if weights else 'gamed rows'} require the instruction difficulties")
    if difficulty and not (weights or gamed):
        raise ConfigError("instruction difficulties require published weights or gamed rows")
    if c is not None and (weights or not c > 0):
        raise ConfigError("C must be positive, and cannot be combined with published weights")


def fit(
    preferences: Floats,
    delta_lengths: Floats,
    difficulty: Floats | None = None,
    gamed: GamedRows | None = None,
    c: float | None = None,
) -> tuple[GlmWeights, float]:
    """Fit the regression as upstream does: L1 penalty, liblinear, soft labels as two weighted rows, no intercept.

    Without `c`, five-fold cross-validation over `C_GRID` chooses it, grouped so that both rows of a
    comparison stay together.

    Raises:
        DataError: too few comparisons, all with the same difference in length, or gamed rows without difficulties.
    """
    return _Problem.of(preferences, delta_lengths, difficulty, gamed).fit(c)


@dataclass(frozen=True, slots=True)
class _Problem:
    """The data of the regression.

    Attributes:
        known: which comparisons are scored, bool [n].
        data: the scored comparisons after the gamed rows.
        n_gamed: gamed rows.
        has_difficulty: whether the middle feature is the difficulty.
    """

    known: NDArray[np.bool_]
    data: _SoftLabels
    n_gamed: int
    has_difficulty: bool

    @classmethod
    def of(
        cls, preferences: Floats, delta_lengths: Floats, difficulty: Floats | None, gamed: GamedRows | None
    ) -> _Problem:
        spread = float(np.std(delta_lengths, ddof=1)) if len(delta_lengths) > 1 else 0.0
        if spread == 0.0:
            raise DataError("all answers have the same difference in length from the baseline's")
        known = ~np.isnan(preferences)
        features = [np.tanh(delta_lengths / spread)]
        features += [difficulty] if difficulty is not None else []
        features += [np.ones(len(preferences))]
        x, y, weight = np.stack(features, axis=1)[known], preferences[known], np.ones(int(known.sum()))
        if len(y) < _N_FOLDS:
            raise DataError(f"{len(y)} scored comparisons are too few: give at least {_N_FOLDS}")
        n_gamed = 0
        if gamed is not None:
            if difficulty is None:
                raise DataError("gamed rows require the instruction difficulties")
            rows = np.stack([gamed.length, gamed.difficulty, np.zeros(len(gamed.length))], axis=1)
            x, y = np.concatenate([rows, x]), np.concatenate([gamed.preference, y])
            weight = np.concatenate([np.full(len(rows), _GAMED_WEIGHT), weight])
            n_gamed = len(rows)
        return cls(known, _SoftLabels.duplicate(x, y, weight), n_gamed, difficulty is not None)

    def fit(self, c: float | None) -> tuple[GlmWeights, float]:
        """The coefficients, and the C given or chosen."""
        data = self.data
        chosen = c if c is not None else max(C_GRID, key=lambda c: _cross_validate(_regression(c), data))
        return self._fit(chosen, data.target * data.weight), chosen

    def refit(self, c: float, times: NDArray[np.int64]) -> GlmWeights:
        """The coefficients with each comparison repeated `times`, [n]."""
        repeated = np.concatenate([np.ones(self.n_gamed), times[self.known]])
        return self._fit(c, self.data.target * self.data.weight * np.tile(repeated, 2))

    def _fit(self, c: float, weight: Floats) -> GlmWeights:
        model = _regression(c).fit(self.data.x, self.data.label, sample_weight=weight)
        coefficients = [float(value) for value in model.coef_[0]]
        return GlmWeights(coefficients[0], coefficients[1] if self.has_difficulty else 0.0, coefficients[-1])


def _regression(c: float) -> Any:
    linear_model = require("sklearn.linear_model", "the length-controlled win rate")
    return linear_model.LogisticRegression(C=c, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=_SEED)


@dataclass(frozen=True, slots=True)
class _SoftLabels:
    """Each row twice, with labels 1 and 0, weighted by the target's share of the label."""

    x: Floats
    label: NDArray[np.int64]
    target: Floats
    weight: Floats
    group: NDArray[np.int64]

    @classmethod
    def duplicate(cls, x: Floats, y: Floats, weight: Floats) -> _SoftLabels:
        label = np.repeat([1, 0], len(y))
        return cls(
            np.concatenate([x, x]),
            label,
            np.concatenate([y, 1 - y]),
            np.concatenate([weight, weight]),
            np.tile(np.arange(len(y)), 2),
        )


def _cross_validate(model: Any, data: _SoftLabels) -> float:
    """The negative weighted log loss on held-out rows, averaged over the folds."""
    selection = require("sklearn.model_selection", "the length-controlled win rate")
    scores = []
    for train, test in selection.GroupKFold(_N_FOLDS).split(data.x, data.label, data.group):
        model.fit(data.x[train], data.label[train], sample_weight=(data.target * data.weight)[train])
        predicted = np.clip(model.predict_proba(data.x[test])[:, 1], 1e-15, 1 - 1e-15)
        target = np.where(data.label[test] == 1, data.target[test], 1 - data.target[test])
        gain = target * np.log(predicted) + (1 - target) * np.log(1 - predicted)
        scores.append(float(np.mean(gain * data.weight[test])))
    return float(np.mean(scores))


def _controlled(
    glm: str,
    weights: GlmWeights,
    difficulty: Floats | None,
    n: int,
    c: float | None = None,
    problem: _Problem | None = None,
) -> LengthControlled:
    predictions = _predict(weights, difficulty, n)
    error = None
    if difficulty is not None and n > 1:
        error = 100 * float(np.std(predictions, ddof=1)) / float(np.sqrt(n))
    generator = np.random.default_rng(_SEED)
    resampled = []
    for _ in range(_N_RESAMPLES):
        times = np.bincount(generator.integers(0, n, size=n), minlength=n)
        if problem is not None and c is not None:
            predictions = _predict(problem.refit(c, times), difficulty, n)
        resampled.append(100 * float(predictions @ times) / n)
    win_rate = 100 * float(_predict(weights, difficulty, n).mean())
    return LengthControlled(glm, win_rate, error, weights, tuple(resampled), c)


def _predict(weights: GlmWeights, difficulty: Floats | None, n: int) -> Floats:
    """The probability that the model's answer is preferred at equal length, [n]."""
    at_equal_length = weights.constant + (weights.difficulty * difficulty if difficulty is not None else np.zeros(n))
    return np.asarray(np.exp(-np.logaddexp(0, -at_equal_length)))
