"""Shares hold over every prefix, and each part counts its own samples without a gap."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.data.shares import Shares


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(min_value=1e-4, max_value=1.0), min_size=1, max_size=9))
def test_every_prefix_is_within_two_and_counts_have_no_gap(weights: list[float]) -> None:
    shares = Shares(weights)
    total = sum(map(Fraction, weights))
    counts: Counter[int] = Counter()
    for sample in range(300):
        part, index = shares.place(sample)
        assert index == counts[part]
        counts[part] += 1
        for other, weight in enumerate(weights):
            bound = Fraction(1, 2) if len(weights) == 2 else 2
            assert abs(counts[other] - (sample + 1) * Fraction(weight) / total) <= bound


def test_far_samples_are_exact() -> None:
    weights = [0.6, 0.3, 0.1]
    shares = Shares(weights)
    first = 10**15
    for sample in range(first, first + 10):
        part, index = shares.place(sample)
        assert abs(index - sample * weights[part]) <= 3


@pytest.mark.parametrize(("weights", "expected"), [([1.0], [0] * 6), ([0.5, 0.5], [0, 1] * 3)])
def test_simple_mixes(weights, expected) -> None:
    places = [Shares(weights).place(sample)[0] for sample in range(6)]
    assert Counter(places) == Counter(expected)
