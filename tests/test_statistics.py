"""Intervals and tests by hand."""

import numpy as np
import pytest

from wmact.statistics import bootstrap, crossed_bootstrap, newcombe, sign_flip, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # z² = 3.84146. Of 5 in 10: centre 0.5, half 1.959964/(1 + 0.384146) · √(0.025 + 0.0096036) = 0.263407
        (5, 10, 0.236593, 0.763407),
        # of 0 in 10: the lower end is 0 and the upper z²/(n + z²) = 3.841459/13.841459
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),  # its mirror image
        (81, 263, 0.255289, 0.366210),  # Newcombe (1998), table I: 0.2553 to 0.3662
        (1, 29, 0.006113, 0.171757),  # likewise: 0.0061 to 0.1718
    ],
)
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=2e-6)


def test_wilson_of_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_interval_of_a_mean() -> None:
    """Of 400 ones and zeros, half each: 0.5 ± 1.96 · √(0.25/400) = 0.5 ± 0.049."""
    values = np.arange(400) % 2
    figure = bootstrap(lambda chosen: float(values[chosen].mean()), 400)
    assert figure == pytest.approx((0.5, 0.451, 0.549), abs=0.006)


def test_the_bootstrap_of_one_seed_is_that_of_its_levels() -> None:
    # 50 of 100: a sum of 100 draws is binomial, its 2.5 % and 97.5 % quantiles are 40 and 60
    estimate = crossed_bootstrap(np.repeat([[0.0, 1.0]], 50, axis=1))
    assert estimate.value == 0.5
    assert (estimate.low, estimate.high) == pytest.approx((0.40, 0.60), abs=0.011)


def test_the_bootstrap_draws_seeds_too() -> None:
    # of two seeds, one with all levels and one with none, both draws are the same seed with probability 1/4 each
    assert crossed_bootstrap(np.array([[0.0] * 50, [1.0] * 50])) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("value", "other", "expected"),
    [
        # Wilson's of 10 in 10 reaches down by 3.841459/13.841459 = 0.277533: to either side where both are the same,
        (1.0, 1.0, (0.0, -0.277533, 0.277533)),
        (0.0, 0.0, (0.0, -0.277533, 0.277533)),
        # and by √2 · 0.277533 = 0.392491 from a difference that can be no greater
        (1.0, 0.0, (1.0, 0.607509, 1.0)),
        (0.0, 1.0, (-1.0, -1.0, -0.607509)),
    ],
)
def test_where_both_always_ended_alike_the_interval_is_newcombes(
    value: float, other: float, expected: tuple[float, float, float]
) -> None:
    found = crossed_bootstrap(np.full((3, 10), value), np.full((2, 10), other))
    assert tuple(found) == pytest.approx(expected, abs=2e-6)


def test_newcombes_interval_is_about_the_bootstraps() -> None:
    """Of arms that are independent: 120 and 240 of 400 levels, whose first 72 are both's (120 · 240 / 400)."""
    ours, theirs = np.zeros((2, 1, 400))
    ours[0, :120] = theirs[0, 48:288] = 1
    found = crossed_bootstrap(ours, theirs)
    assert found.value == pytest.approx(-0.3)
    # 1.96 · √(0.3 · 0.7/400 + 0.6 · 0.4/400) = 0.0657
    assert newcombe(120, 240, 400) == pytest.approx((-0.3657, -0.2343), abs=0.005)
    assert (found.low, found.high) == pytest.approx(newcombe(120, 240, 400), abs=0.01)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_ended_alike_the_interval_is_wilsons(value: float) -> None:
    assert crossed_bootstrap(np.full((3, 10), value)) == (value, *wilson(10 * value, 10))


def test_a_difference_draws_the_same_levels_for_both_arms() -> None:
    levels = np.repeat([[0.0, 1.0]], 50, axis=1)
    assert crossed_bootstrap(levels, levels) == (0.0, 0.0, 0.0)  # apart, it would be ±0.14
    # 10 of 100 levels differ, all the same way: binomial with n = 100, p = 0.1, whose quantiles are 5 and 16
    worse = levels.copy()
    worse[0, 50:60] = 0
    estimate = crossed_bootstrap(levels, worse)
    assert estimate.value == pytest.approx(0.1)
    assert (estimate.low, estimate.high) == pytest.approx((0.05, 0.16), abs=0.011)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 1, 1, 1, 0, 0], 2 / 16),  # all plus or all minus
        ([1, 1, -1], 1.0),  # no sum of three is nearer to 0 than 1
        ([2, 1], 2 / 4),
        ([1, 1, 1, -1], 10 / 16),  # all but the six sums that are 0
        ([1 / 3] * 3, 2 / 8),  # a sum of thirds, whatever its rounding
        ([0, 0], 1.0),
        ([1] * 40, 1e-4),  # 2 / 2^40: less than the flips can tell, which is 1 in 10,001
    ],
)
def test_sign_flips(differences: list[float], p: float) -> None:
    # 10,000 flips: a p of 1/2 is off by 0.005 (one standard deviation)
    assert sign_flip(np.array(differences, dtype=float)) == pytest.approx(p, abs=0.02 if 1e-4 < p < 1 else 1e-6)
