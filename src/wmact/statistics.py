"""What can be said of a figure that chance has a part in: 95 % intervals, and whether two arms differ. NumPy only."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution
RESAMPLES, FLIPS = 2000, 10_000


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); (0, 1) when nothing was observed."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe(successes: float, others: float, n: float) -> tuple[float, float]:
    """Interval of the difference of two proportions of n, from their Wilson intervals.

    Newcombe (1998), Statistics in Medicine 17:2635, method 10 for paired data, without its correlation: that of an
    outcome which is always the same is 0.
    """
    (p, low, high), (q, other_low, other_high) = ((s / n, *wilson(s, n)) for s in (successes, others))
    return p - q - math.hypot(p - low, other_high - q), p - q + math.hypot(high - p, q - other_low)


def with_interval(name: str, share: float, trials: float) -> dict[str, float]:
    """A share of so many independent trials as figures: it, and the ends of Wilson's interval as `_low` and `_high`."""
    low, high = wilson(share * trials, trials)
    return {name: share, f"{name}_low": low, f"{name}_high": high}


def bootstrap(statistic: Callable[[NDArray[np.int64]], float], number: int) -> Estimate:
    """Estimate a statistic of `number` things, given their indices; the interval is by percentiles over resamples."""
    rng = np.random.default_rng(0)
    return _estimate(
        statistic(np.arange(number)), [statistic(rng.integers(number, size=number)) for _ in range(RESAMPLES)]
    )


def crossed_bootstrap(success: Floats, other: Floats | None = None) -> Estimate:
    """Estimate the mean of (seeds, levels), or its difference to that of another arm on the same levels.

    Seeds and levels are both drawn anew, with replacement: levels together for both arms, seeds for each arm by itself.
    Where all values of an arm are equal there is nothing to draw, and the interval is Wilson's, of as many trials as
    levels; of the difference of two such arms it is Newcombe's.
    """
    mean = float(success.mean() - (0 if other is None else other.mean()))
    levels = success.shape[1]
    arms = [success] if other is None else [success, other]
    if all(arm.min() == arm.max() for arm in arms):
        solved = [levels * arm.mean() for arm in arms]
        return Estimate(mean, *(wilson(solved[0], levels) if other is None else newcombe(solved[0], solved[1], levels)))
    rng = np.random.default_rng(0)
    weights = _draws(levels)
    drawn = np.zeros(RESAMPLES)
    for sign, values in zip((1, -1), arms, strict=False):
        seeds = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES) / len(values)
        drawn += sign * ((seeds @ values) * weights).sum(1)
    return _estimate(mean, drawn)


@functools.cache
def _draws(levels: int) -> Floats:
    """Return (RESAMPLES, levels): how often each level is drawn, as a share; made once, for it takes longest."""
    return np.random.default_rng(1).multinomial(levels, np.full(levels, 1 / levels), RESAMPLES) / levels


def _estimate(value: float, resampled: Floats | list[float]) -> Estimate:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def sign_flip(differences: Floats) -> float:
    """Return the two-sided p of a permutation test that paired differences (levels,) are as likely of either sign."""
    differences = differences[differences != 0]
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (FLIPS, len(differences)))
    as_far = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9  # equal sums differ by rounding
    return float(1 + as_far.sum()) / (1 + FLIPS)
