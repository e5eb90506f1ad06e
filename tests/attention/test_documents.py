"""Documents as runs of the flattened tokens."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.attention.documents import Group, cover, equal_groups, from_zero, runs_of, stretches


@st.composite
def spans(draw):
    length = draw(st.integers(1, 30))
    inner = st.sets(st.integers(1, max(1, length - 1)), max_size=5)
    rows = draw(st.lists(inner, min_size=1, max_size=4))
    return tuple((0, *sorted(x for x in row if x < length), length) for row in rows), length


@given(spans())
def test_runs_name_the_document_of_every_token(example):
    rows, length = example
    runs = runs_of(rows, length)
    for row, borders in enumerate(rows):
        for token in range(length):
            low = max(border for border in borders if border <= token)
            high = min(border for border in borders if border > token)
            owner = [run for run in runs if run[0] <= row * length + token < run[1]]
            assert owner == [(row * length + low, row * length + high)]
    assert cover(runs, length * len(rows))


def test_a_border_named_twice_is_no_document():
    assert runs_of(((0, 2, 2, 5),), 5) == ((0, 2), (2, 5))


def test_rows_of_another_length_are_a_mistake():
    with pytest.raises(AssertionError, match="borders"):
        runs_of(((0, 3, 5),), 6)


@given(spans(), st.integers(1, 12))
def test_groups_and_stretches_keep_every_run_in_order(example, short):
    runs = runs_of(*example)
    groups = list(equal_groups(runs))
    unrolled = [(g.start + i * g.length, g.start + (i + 1) * g.length) for g in groups for i in range(g.count)]
    assert unrolled == list(runs)
    assert all(a.length != b.length for a, b in itertools.pairwise(groups))
    parts = list(stretches(runs, short))
    assert [run for _, members in parts for run in members] == list(runs)
    assert all((stop - start < short) == is_short for is_short, members in parts for start, stop in members)
    assert all(a[0] != b[0] for a, b in itertools.pairwise(parts))


def test_groups_of_rows_without_borders():
    assert list(equal_groups(runs_of(((0, 7), (0, 7), (0, 7)), 7))) == [Group(start=0, length=7, count=3)]
    assert Group(start=3, length=7, count=3).stop == 24


def test_from_zero():
    assert from_zero(((5, 7), (7, 12))) == ((0, 2), (2, 7))


@pytest.mark.parametrize(
    "runs", [((0, 3), (4, 6)), ((1, 6),), ((0, 5),), ((0, 7),), ((0, 4), (3, 6)), ((0, 3), (3, 3), (3, 6))]
)
def test_gaps_overlaps_and_empty_runs_do_not_cover(runs):
    assert not cover(runs, 6)
    assert cover(((0, 3), (3, 6)), 6)
