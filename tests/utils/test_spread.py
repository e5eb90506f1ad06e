"""Rank correlation by its definition, and intervals whose coverage is known."""

import random

import pytest

from longspan.utils.spread import spearman, table_interval


def test_spearman_of_known_lists():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 45]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 - 6·Σd²/(n(n² − 1)), d = (0, 1, 1, 2, 2): 1 - 60/120
    assert spearman([1, 2, 3, 4, 5], [1, 3, 2, 6, 4.5]) == pytest.approx(1 - 6 * (0 + 1 + 1 + 1 + 1) / 120)
    assert spearman([1, 1, 2], [1, 1, 2]) == pytest.approx(1)  # ties share a rank
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_table_interval_covers_the_mean():
    """Rows and columns with effects of their own: about 95 % of the intervals of 8 x 8 tables hold the true mean."""
    rng = random.Random(5)
    held = 0
    for trial in range(120):
        rows, columns = ([rng.gauss(0, 1) for _ in range(8)] for _ in range(2))
        table = [[3 + row + column + rng.gauss(0, 0.5) for column in columns] for row in rows]
        low, high = table_interval(table, seed=trial)
        held += low <= 3 <= high
    assert 0.80 <= held / 120 <= 0.99  # a percentile interval of so few is a little narrow


def test_table_interval_of_one_value_has_no_width():
    assert table_interval([[2.5]]) == (2.5, 2.5)
    assert table_interval([[1.0, 2.0]] * 3) == table_interval([[1.0, 2.0]] * 3)
