"""The geometry of head groups over every count of heads up to 64, against rules written down here."""

import itertools

import pytest

from longspan.attention.heads import HeadGeometry, divisors
from longspan.utils.errors import LongspanError

MOST, MOST_AT_ONCE = 64, 16  # heads; heads where every number of key heads at once is tried too


def dividing(number):
    return [x for x in range(1, number + 1) if number % x == 0]


def cases():
    """Every h, g | h, A | h, key heads at once, and every group width; last, the query heads of one copy."""
    for h in range(1, MOST + 1):
        for g, degree in itertools.product(dividing(h), dividing(h)):
            for kv_width in dividing(h // degree) if h <= MOST_AT_ONCE else [1]:
                copies = next(x for x in range(g, h + 1, g) if x % (degree * kv_width) == 0)
                for width in dividing(h // copies):
                    yield h, g, degree, kv_width, width, h // copies


def check(h, g, degree, kv_width, width, served):
    geometry = HeadGeometry(heads=h, kv_heads=g, degree=degree, kv_width=kv_width, query_width=width)
    out, held = [], {}
    for stage in range(geometry.stages):
        for rank in range(degree):
            group = geometry.group(stage, rank)
            assert len(group.kv_heads) == kv_width
            assert len(group.query_heads) == kv_width * width
            # The kernel pairs its query i with its key head i // width; the model pairs q with q // (h / g).
            assert all(head // (h // g) == group.kv_heads[i // width] for i, head in enumerate(group.query_heads))
            copies = [head // served for head in group.query_heads[::width]]
            assert group.new_kv == (copies != held.get(rank))
            held[rank] = copies
            out.extend(group.query_heads)
    assert sorted(out) == list(range(h))  # every query head, once
    assert tuple(out) == geometry.order()
    assert [out[place] for place in geometry.places()] == list(range(h))


def test_every_case():
    count = 0
    for case in cases():
        check(*case)
        count += case[3] == 1
    assert count == 3244  # the count that the derivation gives for one key head at once


def test_one_device_takes_a_key_head_and_its_queries():
    found = list(HeadGeometry(heads=32, kv_heads=8).groups())
    assert [group.kv_heads for group in found] == [(kv,) for kv in range(8)]
    assert [group.query_heads for group in found] == [tuple(range(4 * kv, 4 * kv + 4)) for kv in range(8)]
    assert all(group.new_kv for group in found)


def test_one_device_with_wider_groups():
    found = list(HeadGeometry(heads=32, kv_heads=8, kv_width=4).groups())
    assert [group.kv_heads for group in found] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [group.query_heads for group in found] == [tuple(range(16)), tuple(range(16, 32))]


def test_slices_in_order_would_meet_wrong_key_heads():
    """What released code does for Llama-3-8B on 8 ranks: stage z takes heads 8z … 8z + 7, key head = rank."""
    wrong = sum((8 * stage + rank) // 4 != rank for stage in range(4) for rank in range(8))
    assert wrong == 28
    geometry = HeadGeometry(heads=32, kv_heads=8, degree=8, query_width=1)
    pairs = [
        (geometry.group(z, i).query_heads[0], geometry.group(z, i).kv_heads[0]) for z in range(4) for i in range(8)
    ]
    assert all(query // 4 == kv for query, kv in pairs)
    assert [geometry.group(z, 3).new_kv for z in range(4)] == [True, False, False, False]


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"heads": 28, "kv_heads": 4, "degree": 8}, "numbers of ranks that work: 1, 2, 4, 7, 14, 28"),
        ({"heads": 9, "kv_heads": 2}, "numbers of key/value heads that work: 1, 3, 9"),
        ({"heads": 8, "kv_heads": 4, "degree": 2, "kv_width": 3}, "numbers of heads at once that work: 1, 2, 4"),
        ({"heads": 32, "kv_heads": 8, "query_width": 3}, "numbers of heads that work: 1, 2, 4"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_works(options, fix):
    with pytest.raises(LongspanError, match=r"\[attention\.heads\]") as caught:
        HeadGeometry(**options)
    assert caught.value.fix == fix


def test_divisors():
    assert divisors(28) == (1, 2, 4, 7, 14, 28)
