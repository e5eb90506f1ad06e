"""Rank correlation, and intervals by resampling, in plain Python."""

import random
from collections.abc import Sequence
from statistics import fmean

from longspan.utils.stats import RESAMPLES


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None when either side has no order."""
    a, b = _ranks(first), _ranks(second)
    mean_a, mean_b = fmean(a), fmean(b)
    together = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return together / spread**0.5 if spread > 0 else None


def table_interval(rows: Sequence[Sequence[float]], *, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of a table when its rows and its columns are drawn again.

    Rows are repetitions of a search, columns the texts that all were measured on. With one row and one column the
    interval has no width and says nothing.
    """
    rng = random.Random(seed)
    height, width = len(rows), len(rows[0])

    means = []
    for _ in range(RESAMPLES):
        some = rng.choices(range(height), k=height)
        texts = rng.choices(range(width), k=width)
        means.append(fmean(rows[row][text] for row in some for text in texts))
    means.sort()
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    first = 0
    while first < len(order):
        last = first
        while last + 1 < len(order) and values[order[last + 1]] == values[order[first]]:
            last += 1
        for place in order[first : last + 1]:
            ranks[place] = (first + last) / 2
        first = last + 1
    return ranks
