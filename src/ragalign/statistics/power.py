"""Power of a paired comparison: how many prompts show a difference, and which difference a number of prompts can show.

All three use the two-sided paired t-test over prompt means with the noncentral t distribution (Cohen 1988,
chapter 2). It agrees with the normal approximation from about fifty prompts and is more accurate below. With several
samples per prompt, `sd` is the standard deviation of the prompts' mean differences.
"""

from __future__ import annotations

import math

from ragalign._optional import require
from ragalign.errors import ConfigError

_MAX_PROMPTS = 10**9


def paired_power(n_prompts: int, difference: float, sd: float, *, alpha: float = 0.05) -> float:
    """The probability that `n_prompts` prompts show a true mean `difference` at level `alpha`.

    Args:
        n_prompts: prompts answered by both systems, at least 2.
        difference: the true mean difference, in the scores' unit.
        sd: standard deviation of the differences between prompts, in the same unit.
        alpha: the test's level.

    Raises:
        ConfigError: an argument is out of range.
    """
    _check(sd, alpha)
    if n_prompts < 2:
        raise ConfigError(f"power needs at least 2 prompts, not {n_prompts}")
    stats = require("scipy.stats", "power")
    degrees = n_prompts - 1
    noncentrality = abs(difference) / sd * math.sqrt(n_prompts)
    critical = float(stats.t.isf(alpha / 2, degrees))
    # Above this the far tail of nct is numerically unstable, and the power is 1 to all printed digits.
    if noncentrality > critical + 30:
        return 1.0
    upper = stats.nct.sf(critical, degrees, noncentrality)
    lower = stats.nct.cdf(-critical, degrees, noncentrality)
    return float(upper + (0.0 if math.isnan(lower) else lower))


def prompts_needed(difference: float, sd: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """The fewest prompts that show a true mean `difference` with probability `power`; see `paired_power`.

    Raises:
        ConfigError: an argument is out of range, or no number of prompts below a billion is enough.
    """
    _check(sd, alpha, power)
    if difference == 0 or not math.isfinite(difference):
        raise ConfigError(f"no number of prompts shows a difference of {difference:g}")
    enough = 2
    while paired_power(enough, difference, sd, alpha=alpha) < power:
        enough *= 2
        if enough > _MAX_PROMPTS:
            raise ConfigError(f"a difference of {difference:g} with sd {sd:g} needs more than {_MAX_PROMPTS:,} prompts")
    too_few = max(1, enough // 2)
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if paired_power(middle, difference, sd, alpha=alpha) < power:
            too_few = middle
        else:
            enough = middle
    return enough


def detectable_difference(n_prompts: int, sd: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true mean difference that `n_prompts` prompts show with probability `power`.

    Raises:
        ConfigError: an argument is out of range.
    """
    _check(sd, alpha, power)
    if n_prompts < 2:
        raise ConfigError(f"power needs at least 2 prompts, not {n_prompts}")
    if power <= alpha:
        raise ConfigError(f"power must be larger than alpha ({alpha}): without a difference the power equals alpha")
    brentq = require("scipy.optimize", "power").brentq
    high = sd
    while paired_power(n_prompts, high, sd, alpha=alpha) < power:
        high *= 2
    return float(brentq(lambda x: paired_power(n_prompts, x, sd, alpha=alpha) - power, 0.0, high, xtol=1e-9 * sd))


def _check(sd: float, alpha: float, power: float | None = None) -> None:
    if not (sd > 0 and math.isfinite(sd)):
        raise ConfigError(f"sd must be a positive number, not {sd}")
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must be between 0 and 1, such as 0.05, not {alpha}")
    if power is not None and not 0 < power < 1:
        raise ConfigError(f"power must be between 0 and 1, such as 0.8, not {power}")
