"""Canaries: what is planned is what the rows show, in one document or across a border, after any resume."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from test_curricula import TEXT, no_encode

from longspan.config import kind_class, kinds
from longspan.data.canaries import CanarySettings, Insertion, WithCanaries, planned, planted, sightings
from longspan.data.curricula.base import StageText
from longspan.data.curricula.buckets import Buckets
from longspan.data.curricula.stages import Stages
from longspan.data.rows import Row
from longspan.utils.errors import DataError

SETTINGS = CanarySettings(pairs=1, repeats=(1, 3), distances=(16, 40), tokens=4)


@pytest.fixture(scope="module")
def text(make_store: Any, tmp_path_factory: pytest.TempPathFactory) -> StageText:
    rng = np.random.default_rng(0)
    lengths = [3_000, 20, 90, 1_500, 40, 700, 64, 64, 30, 500]
    documents = [rng.integers(1, 500, size=length).tolist() for length in lengths]
    store = make_store(tmp_path_factory.mktemp("canaries") / "s", documents, vocabulary=600, separator=0)
    return StageText(store=store, length=128, mix=TEXT, steps=30, slots_per_step=2, seed=3, stage=1, encode=no_encode)


def test_every_pair_is_seen_as_often_as_planned(text: StageText) -> None:
    slots = Stages().slots(text)
    insertions = planned(SETTINGS, slots, text, vocabulary=600)
    assert len(insertions) == 7 * (1 + 3)
    assert len({entry.slot for entry in insertions}) == len(insertions), "never two in a slot"
    changed = WithCanaries(slots, insertions)
    rows = [row for number in range(60) for row in changed.slot(number)]
    found = sightings(rows, insertions)
    for number, entries in itertools.groupby(insertions, key=lambda entry: entry.id):
        group = list(entries)
        same = group[0].group != "across"
        assert found[number] == Counter({(same, entry.distance): group[0].repeats for entry in group})
        assert len(group) == group[0].repeats
    assert {e.distance for e in insertions if e.group == "far"} == {16, 40}
    assert all(e.key_at == 0 for e in insertions if e.group == "first")
    assert all(e.value_at + 4 == 128 for e in insertions if e.group == "last")
    assert all(e.value_at == 64 for e in insertions if e.group == "middle")
    tokens = [token for entry in insertions for token in (*entry.key, *entry.value)]
    assert 0 not in tokens
    assert max(tokens) < 600


def test_planting_moves_nothing_else(text: StageText) -> None:
    slots = Stages().slots(text)
    insertions = {entry.slot: entry for entry in planned(SETTINGS, slots, text, vocabulary=600)}
    changed = WithCanaries(slots, insertions.values())
    for number in range(60):
        (before,), (after,) = slots.slot(number), changed.slot(number)
        assert before.spans == after.spans
        assert np.array_equal(before.weights, after.weights)
        assert np.array_equal(before.positions, after.positions)
        entry = insertions.get(number)
        places = (
            []
            if entry is None
            else [*range(entry.key_at, entry.key_at + 4), *range(entry.value_at, entry.value_at + 4)]
        )
        assert {*np.flatnonzero(before.tokens != after.tokens).tolist()} <= {*places}
        for start, stop in itertools.pairwise(after.spans):
            inside = slice(start, stop - 1)
            weighed = after.weights[inside] > 0
            assert np.array_equal(after.targets[inside][weighed], after.tokens[start + 1 : stop][weighed])


def test_the_same_map_every_time_and_for_every_curriculum(text: StageText) -> None:
    one, two = (planned(SETTINGS, Stages().slots(text), text, vocabulary=600) for _ in range(2))
    assert one == two
    for kind in kinds("longspan.data.curricula"):
        entry = Buckets(shortest=64) if kind == "buckets" else kind_class("longspan.data.curricula", kind)()
        few = CanarySettings(pairs=1, groups=("near", "first"), repeats=(2,), tokens=4)
        insertions = planned(few, entry.slots(text), text, vocabulary=600)
        changed = WithCanaries(entry.slots(text), insertions)
        changed.check()
        rows = [row for number in range(60) for row in changed.slot(number)]
        assert [sum(counts.values()) for counts in sightings(rows, insertions).values()] == [2, 2]
        assert changed.lengths().mean_length == entry.slots(text).lengths().mean_length
        assert changed.repeats() == entry.slots(text).repeats()


def test_a_broken_border_is_found(text: StageText) -> None:
    """Planted fault: the row's documents run into one, as when masks are lost."""
    slots = Stages().slots(text)
    insertions = planned(
        CanarySettings(pairs=1, groups=("across",), repeats=(3,), tokens=4), slots, text, vocabulary=600
    )
    rows = [row for number in range(60) for row in WithCanaries(slots, insertions).slot(number)]
    broken = [Row(r.tokens, r.targets, r.weights, r.positions, (0, 128)) for r in rows]
    assert sightings(rows, insertions)[0] == Counter({(False, 4): 3})
    assert sightings(broken, insertions)[0] == Counter({(True, 4): 3})
    doubled = [*rows, *rows[:60]]
    assert sum(sightings(doubled, insertions)[0].values()) > 3, "rows that come twice are found"


def test_no_room(text: StageText) -> None:
    slots = Stages().slots(text)
    for settings in (
        CanarySettings(pairs=1, groups=("far",), distances=(127,)),
        CanarySettings(pairs=1, groups=("near",), repeats=(61,)),
    ):
        with pytest.raises(DataError) as error:
            planned(settings, slots, text, vocabulary=600)
        assert error.value.code == "data.no-room-for-canary"


def test_targets_at_the_beginning_of_a_document() -> None:
    ids = np.arange(10, dtype=np.int64)
    row = Row(ids, ids + 1, np.ones(10, dtype=np.float32), ids, (0, 5, 10))
    entry = Insertion(
        id=0, group="across", repeats=1, distance=2, key=(70, 71), value=(80, 81), slot=0, row=0, key_at=3, value_at=5
    )
    found = planted(row, entry)
    assert found.tokens.tolist() == [0, 1, 2, 70, 71, 80, 81, 7, 8, 9]
    assert found.targets.tolist() == [1, 2, 70, 71, 5, 81, 7, 8, 9, 10]
