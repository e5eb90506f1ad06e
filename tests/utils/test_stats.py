"""Wilson intervals against published values and their defining equation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.utils.stats import wilson


@pytest.mark.parametrize(
    ("hits", "trials", "low_percent"),
    [(3, 3, 43.9), (10, 10, 72.2), (25, 25, 86.7), (50, 50, 92.9), (100, 100, 96.3)],
)
def test_lower_bounds_when_all_trials_hit(hits, trials, low_percent):
    low, high = wilson(hits, trials)
    assert round(100 * low, 1) == low_percent
    assert high == pytest.approx(1.0)
    mirrored_low, mirrored_high = wilson(0, trials)
    assert mirrored_low == pytest.approx(0.0)
    assert round(100 * (1 - mirrored_high), 1) == low_percent


def test_the_ruler_bar_at_five_hundred_trials():
    low, high = wilson(428, 500)
    assert (round(100 * low, 1), round(100 * high, 1)) == (82.3, 88.4)


def test_nothing_tried_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@settings(max_examples=50)
@given(st.integers(1, 10_000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_bounds_solve_the_score_equation(pair):
    hits, trials = pair
    share = hits / trials
    for bound in wilson(hits, trials):
        # |share - p| = z · sqrt(p (1 - p) / n), squared
        assert (share - bound) ** 2 == pytest.approx(1.9599639845**2 * bound * (1 - bound) / trials, abs=1e-9)
