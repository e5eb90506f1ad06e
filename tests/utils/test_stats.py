"""Intervals against published values and their equations, clusters by simulation, comparisons by hand."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.utils.stats import (
    bootstrap,
    detectable,
    effective_length,
    effective_trials,
    holm,
    intraclass,
    paired,
    paired_p,
    score_interval,
    t_quantile,
    wilson,
)


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


# -- clusters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (19, 2.09302), (120, 1.97993)]
)
def test_students_t_as_in_its_table(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, rel=2e-5)


def test_likeness_of_clusters_and_what_their_trials_are_worth():
    alike = [(5, 5), (0, 5), (5, 5), (0, 5)]
    assert intraclass(alike) == pytest.approx(1.0)
    assert effective_trials(alike, 1.0) == pytest.approx(4)
    independent = [(hits, 10) for hits in (5, 5, 5, 5)]
    assert intraclass(independent) == 0.0
    assert effective_trials(independent, 0.0) == 40
    assert effective_trials([(0, 7)], 0.5) == pytest.approx(7 / 4)
    # By hand: shares 0.2, 0.6; mean square between (0.2·0.2² ... ) 5·2·0.04 = 0.4, within (0.8 + 1.2) / 8 = 0.25.
    assert intraclass([(1, 5), (3, 5)]) == pytest.approx((0.4 - 0.25) / (0.4 + 4 * 0.25))
    assert intraclass([(3, 9)]) == 0.0
    assert intraclass([(0, 9), (0, 9)]) == 0.0


def beta_clusters(draw, *, clusters, size, spread):
    """Hits of clusters whose own rates lie around 0.7, the closer the larger `spread`."""
    found = []
    for _ in range(clusters):
        rate = draw.betavariate(0.7 * spread, 0.3 * spread)
        found.append((float(sum(draw.random() < rate for _ in range(size))), float(size)))
    return found


@pytest.mark.parametrize(("clusters", "simulations"), [(12, 250), pytest.param(12, 3000, marks=pytest.mark.slow)])
def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say(clusters, simulations):
    draw, held = random.Random(1), 0
    for _ in range(simulations):
        low, high = bootstrap(beta_clusters(draw, clusters=clusters, size=8, spread=4), resamples=500)
        held += low <= 0.7 <= high
    # 95 ± 2, and what a simulation of this size adds to it
    assert abs(held / simulations - 0.95) <= 0.02 + 2 * (0.95 * 0.05 / simulations) ** 0.5


def test_a_bootstrap_of_plain_trials_would_be_too_short():
    draw, held = random.Random(1), 0
    for _ in range(250):
        groups = beta_clusters(draw, clusters=12, size=8, spread=4)
        low, high = wilson(sum(hits for hits, _ in groups), 96)
        held += low <= 0.7 <= high
    assert held / 250 < 0.88


def test_score_intervals_where_the_bootstrap_has_nothing_to_go_by():
    assert score_interval([(4, 4), (4, 4), (4, 4)]) == wilson(12, 12)
    assert score_interval([(3.0, 4.0)]) == wilson(3, 4)
    assert score_interval([]) == (0.0, 1.0)
    low, high = score_interval([(4, 4), (1, 4), (3, 4), (4, 4)])
    assert 0 <= low < 12 / 16 < high <= 1
    with pytest.raises(ValueError, match="two clusters"):
        bootstrap([(1, 2)])


# -- comparisons -----------------------------------------------------------------------------------------------------


def test_a_model_does_not_differ_from_itself():
    groups = {f"c{i}": (float(i % 4), 4.0) for i in range(9)}
    assert paired(groups, groups) == (0.0, 0.0, 0.0)
    assert paired_p(groups, groups) == 1.0


def test_paired_differences_use_what_both_ran():
    first = {"a": (1.0, 4.0), "b": (2.0, 4.0), "c": (0.0, 4.0)}
    second = {"a": (2.0, 4.0), "b": (3.0, 4.0), "d": (0.0, 4.0)}
    difference, low, high = paired(first, second)
    assert difference == pytest.approx(2 / 8)
    assert low <= difference <= high
    with pytest.raises(ValueError, match="other questions"):
        paired(first, {"a": (1.0, 5.0), "b": (1.0, 4.0)})


def test_sign_flips_by_hand():
    # Three changes, all of one sign: of eight signs, two give as large a sum.
    groups = dict.fromkeys("abc", (0.0, 4.0)), dict.fromkeys("abc", (1.0, 4.0))
    assert paired_p(*groups) == pytest.approx(2 / 8)
    many = {str(i): (0.0, 4.0) for i in range(40)}, {str(i): (1.0, 4.0) for i in range(40)}
    assert paired_p(*many) < 0.001


def test_holm_by_hand():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert found == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.5})
    assert list(found) == ["a", "b", "c", "d"]


@settings(max_examples=50)
@given(
    st.dictionaries(st.integers(1, 9), st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=6),
    st.floats(0, 1),
)
def test_certified_is_never_beyond_what_is_not_refuted(bounds, threshold):
    intervals = {length: (min(pair), max(pair)) for length, pair in bounds.items()}
    certified, possible = effective_length(intervals, threshold)
    assert (certified or 0) <= (possible or 0)


def test_effective_length_by_hand():
    intervals = {4: (0.9, 1.0), 8: (0.86, 0.99), 16: (0.7, 0.9), 32: (0.87, 0.95), 64: (0.5, 0.8)}
    assert effective_length(intervals, 0.856) == (8, 32)  # 32 is not certified: 16 is not
    assert effective_length(intervals, 0.95) == (None, 32)
    assert effective_length({}, 0.856) == (None, None)


def test_the_smallest_difference_that_can_be_found():
    # The textbook case: rates 0.5 and 0.6 need 388 trials each by this formula.
    assert detectable(392) == pytest.approx(0.1, abs=0.001)
    assert detectable(0) == float("inf")


@pytest.mark.parametrize(("contexts", "spread"), [(4, 6.0), (16, 6.0), (4, 20.0)])
def test_cells_of_shared_contexts_hold_the_truth_as_often_as_they_say(contexts, spread):
    # As in a packed grid: 20 cells with 5 keys each in every context, and contexts of different difficulty.
    draw, held, tried = random.Random(2), 0, 0
    for _ in range(150):
        rates = [draw.betavariate(0.8 * spread, 0.2 * spread) for _ in range(contexts)]
        cells = [[(float(sum(draw.random() < p for _ in range(5))), 5.0) for p in rates] for _ in range(20)]
        alike = sum(map(intraclass, cells)) / 20
        for groups in cells:
            worth = effective_trials(groups, alike)
            low, high = wilson(sum(hits for hits, _ in groups) / (5 * contexts) * worth, worth)
            held += low <= 0.8 <= high
            tried += 1
    assert abs(held / tried - 0.95) <= 0.02 + 0.02  # contexts are shared: 150 of them are few
