"""Layouts are bijections with equal work, and the plan of rectangles sees every visible pair once: against masks."""

import itertools

import numpy as np
import pytest
from attention_cases import cut
from hypothesis import given
from hypothesis import strategies as st

from longspan.attention.layout import (
    document_of,
    gaps,
    hiding,
    in_order,
    local_runs,
    placed,
    rectangles,
    share,
    tokens_of,
    zigzag,
)

LENGTHS = st.integers(0, 70)
RANKS = st.integers(1, 9)
BORDERS = st.sets(st.integers(1, 69), max_size=8)


def places(pieces):
    return [token for start, stop in pieces for token in range(start, stop)]


def layouts(length, ring, ulysses):
    return [
        share(zigzag(length, ranks=ring, rank=outer), parts=ulysses, part=inner)
        for outer in range(ring)
        for inner in range(ulysses)
    ]


@given(length=LENGTHS, ring=RANKS, ulysses=st.integers(1, 4))
def test_every_token_has_one_place(length, ring, ulysses):
    found = layouts(length, ring, ulysses)
    assert sorted(token for pieces in found for token in places(pieces)) == list(range(length))
    for pieces in found:
        assert places(pieces) == sorted(places(pieces))
        assert all(start < stop for start, stop in pieces)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(pieces))
        assert tokens_of(pieces) == len(places(pieces))


@given(length=LENGTHS, ring=RANKS, ulysses=st.integers(1, 4))
def test_the_way_back(length, ring, ulysses):
    """Cut a row by the layouts, and put it together by `in_order`."""
    found = layouts(length, ring, ulysses)
    parts = [places(pieces) for pieces in found]
    back = [token for place in in_order(found) for token in parts[place.rank][place.local]]
    assert back == list(range(length))
    assert all(places(((p.start, p.stop),)) == parts[p.rank][p.local] for p in in_order(found))


@given(length=LENGTHS, ring=RANKS)
def test_the_gaps_are_the_rest(length, ring):
    for rank in range(ring):
        own = zigzag(length, ranks=ring, rank=rank)
        assert sorted(places(own) + places(gaps(own, length))) == list(range(length))


@given(length=st.integers(0, 2_000_000), ranks=st.integers(1, 64))
def test_zigzag_gives_equal_causal_work(length, ranks):
    """In pairs of query and key: within two tokens' worth; in tokens: within two."""
    work, tokens = [], []
    for rank in range(ranks):
        pieces = zigzag(length, ranks=ranks, rank=rank)
        work.append(sum((stop * (stop + 1) - start * (start + 1)) // 2 for start, stop in pieces))
        tokens.append(tokens_of(pieces))
    assert max(work) - min(work) <= 2 * (length + 1)
    assert max(tokens) - min(tokens) <= 2


@given(length=LENGTHS, parts=RANKS)
def test_parts_are_nearly_equal(length, parts):
    sizes = [tokens_of(share(((0, length),), parts=parts, part=part)) for part in range(parts)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("length", "ranks", "want"),
    [
        (16, 2, [((0, 4), (12, 16)), ((4, 12),)]),
        (13, 2, [((0, 3), (9, 13)), ((3, 9),)]),
        (2, 4, [((1, 2),), (), (), ((0, 1),)]),
        (7, 1, [((0, 7),)]),
        (0, 2, [(), ()]),
    ],
)
def test_zigzag_in_numbers(length, ranks, want):
    assert [zigzag(length, ranks=ranks, rank=rank) for rank in range(ranks)] == want


# -- documents ---------------------------------------------------------------------------------------------------------


def seen(length, runs):
    """Who sees whom, by a mask."""
    document = np.searchsorted([start for start, _ in runs], np.arange(length), side="right")
    return (document[:, None] == document) & np.tri(length, dtype=bool)


@given(length=st.integers(1, 70), borders=BORDERS, ring=RANKS, ulysses=st.integers(1, 3))
def test_ring_steps_see_every_visible_pair_once(length, borders, ring, ulysses):
    """Own documents as causal squares, then the rectangles of each other rank."""
    runs, found = cut(length, borders), np.zeros((length, length), dtype=int)
    all_pieces = layouts(length, ring, ulysses)
    for own in all_pieces:
        mine = np.array(places(own), dtype=int)
        for start, stop in local_runs(own, runs):
            found[np.ix_(mine[start:stop], mine[start:stop])] += np.tri(stop - start, dtype=int)
        for other in all_pieces:
            if other is own:
                continue
            theirs = np.array(places(other), dtype=int)
            for rectangle in rectangles(own, other, runs):
                found[np.ix_(mine[rectangle.queries], theirs[rectangle.keys])] += 1
    assert np.array_equal(found, seen(length, runs))


@given(length=st.integers(1, 70), borders=BORDERS, ring=RANKS)
def test_gaps_see_every_visible_pair_once(length, borders, ring):
    """The plan of a gather: own documents, then one rectangle at most for each gap."""
    runs = cut(length, borders)
    for rank in range(ring):
        own, found = zigzag(length, ranks=ring, rank=rank), np.zeros((length, length), dtype=int)
        mine = np.array(places(own), dtype=int)
        for start, stop in local_runs(own, runs):
            found[np.ix_(mine[start:stop], mine[start:stop])] += np.tri(stop - start, dtype=int)
        for gap in gaps(own, length):
            plan = rectangles(own, (gap,), runs)
            assert len(plan) <= 1
            for rectangle in plan:
                found[np.ix_(mine[rectangle.queries], np.arange(*gap)[rectangle.keys])] += 1
        want = np.zeros_like(found)
        want[mine] = seen(length, runs)[mine]
        assert np.array_equal(found, want)


@given(length=st.integers(1, 70), borders=BORDERS, ring=RANKS)
def test_local_runs_are_one_after_another(length, borders, ring):
    for rank in range(ring):
        own = zigzag(length, ranks=ring, rank=rank)
        found = local_runs(own, cut(length, borders))
        assert [edge for run in found for edge in range(*run)] == list(range(tokens_of(own)))


def test_one_document_makes_one_call_in_each_step():
    """Without borders a step is half the queries with all keys, or all queries with half the keys."""
    runs, ranks = ((0, 64),), 4
    pieces = [zigzag(64, ranks=ranks, rank=rank) for rank in range(ranks)]
    for rank in range(ranks):
        assert local_runs(pieces[rank], runs) == ((0, 16),)
        for other in range(ranks):
            if other == rank:
                continue
            (plan,) = rectangles(pieces[rank], pieces[other], runs)
            assert (plan.queries, plan.keys) == (
                (slice(0, 16), slice(0, 8)) if other < rank else (slice(8, 16), slice(0, 16))
            )


def test_documents_and_windows():
    runs = ((0, 5), (5, 6), (6, 20))
    assert [document_of(token, runs) for token in (0, 4, 5, 6, 19)] == [(0, 5), (0, 5), (5, 6), (6, 20), (6, 20)]
    assert [hiding(window, runs) for window in (None, 13, 14, 100)] == [None, 13, None, None]
    assert [(p.offset, p.local) for p in placed(((2, 5), (9, 10)))] == [(0, slice(0, 3)), (3, slice(3, 4))]
