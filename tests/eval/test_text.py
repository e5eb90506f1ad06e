"""Windows of held-out text: never repeated, never the same twice, no separator inside."""

import random
from itertools import pairwise

import numpy as np
import pytest
from eval_toys import Texts, decode
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.eval.text import window
from longspan.utils.errors import DataError


def letters(*sizes: int) -> Texts:
    """Documents in which every character stands once, so that repetition would show."""
    alphabet = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return Texts(*("".join(next(alphabet) for _ in range(size)) for size in sizes))


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 0),
    share=st.floats(0.01, 1.0),
    windows=st.integers(1, 10),
    seed=st.integers(0, 99),
)
def test_windows_hold_each_token_once_and_all_differ(sizes, share, windows, seed):
    documents = letters(*sizes)
    total = sum(sizes)
    length, windows = max(1, int(share * total)), min(windows, total)
    cut = [
        decode(window(documents, length, index=index, windows=windows, rng=random.Random(seed)))
        for index in range(windows)
    ]
    for text in cut:
        assert len(text) == len(set(text)) == length
    assert len(set(cut)) == windows


def test_neighbours_in_a_document_stay_neighbours():
    documents = letters(26, 26)
    text = decode(window(documents, 52, index=0, windows=1, rng=random.Random(0)))
    breaks = [(a, b) for a, b in pairwise(text) if ord(b) != ord(a) + 1]
    assert len(breaks) <= 2  # where documents join


def test_too_little_text_says_how_much_is_missing():
    with pytest.raises(DataError, match="3 contexts of 40 tokens need 40 tokens of held-out text; 10 are missing"):
        window(letters(20, 10), 40, index=0, windows=3, rng=random.Random(0))
    with pytest.raises(DataError, match="2 are missing"):
        window(letters(10), 5, index=0, windows=12, rng=random.Random(0))


def test_an_empty_store_is_refused():
    with pytest.raises(DataError, match="0 held-out documents"):
        window(Texts(), 5, index=0, windows=1, rng=random.Random(0))


def test_ids_are_64_bit():
    assert window(letters(9), 5, index=0, windows=1, rng=random.Random(0)).dtype == np.int64
