"""What arrives where, written down a second time; on one to four ranks, with unequal and empty messages."""

import numpy as np
import pytest
from rank_functions import exchanges, not_contiguous
from ranks import run_ranks


def block(of, to, size):
    return np.arange(2 * size).reshape(2, size) + 20.0 * of + 5.0 * to


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_exchanges(ranks):
    sizes = {1: [3], 2: [3, 0], 3: [3, 1, 0], 4: [3, 1, 3, 0]}[ranks]
    for me, answer in enumerate(run_ranks(ranks, exchanges)):
        before = (me + ranks - 1) % ranks
        want = {
            "ring": block(before, 0, sizes[before]),
            "all-to-all": [block(of, me, (me + of) % 3) for of in range(ranks)],
            "gather": [block(of, 0, sizes[of]) for of in range(ranks)],
            "scatter": sum(block(of, me, sizes[me]) for of in range(ranks)),
            "reduce": sum(block(of, 0, 2) for of in range(ranks)),
        }
        assert len(answer) == 4
        for dtype, found in answer.items():
            for name, value in want.items():
                if isinstance(value, list):
                    assert all(np.array_equal(a, b) for a, b in zip(found[name], value, strict=True)), (dtype, name)
                else:
                    assert np.array_equal(found[name], value), (dtype, name)


def test_views_travel_as_what_they_show():
    x = np.arange(12.0).reshape(4, 3).T
    first, second = run_ranks(2, not_contiguous)
    for own, other, (ring, last, total) in ((x, x + 100, first), (x + 100, x, second)):
        assert np.array_equal(ring, other)
        assert np.array_equal(last, x + 100)
        assert np.array_equal(total, own + other)
