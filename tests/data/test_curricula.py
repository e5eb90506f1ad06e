"""Orders of lengths: no state, no lost pair, the paper's statistics; each kind does what its paper says."""

import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import kind_class, kinds
from longspan.data.curricula._lengths import Lengths
from longspan.data.curricula._windows import cut
from longspan.data.curricula.base import StageText
from longspan.data.curricula.buckets import Buckets, apportioned, decompose, drawn_order
from longspan.data.curricula.cyclic import Cyclic
from longspan.data.curricula.ladder import Ladder
from longspan.data.rows import Row, StageRows
from longspan.data.settings import MixPart
from longspan.probes.needle import Needle
from longspan.utils.errors import DataError

PACKAGE = "longspan.data.curricula"
SETTINGS: dict[str, dict[str, Any]] = {"buckets": {"shortest": 4, "cycles": 3}, "ladder": {"start": 3}}
TEXT = (MixPart(share=1.0),)
LENGTHS = (131, 7, 64, 3, 260, 15, 33, 500, 1, 0, 96)


def no_encode(text: str) -> list[int]:
    raise AssertionError("text rows encode nothing")


@pytest.fixture(scope="module")
def store(make_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Documents in which every token is another number: a token tells where it came from."""
    numbers = itertools.count(1)
    documents = [[next(numbers) for _ in range(length)] for length in LENGTHS]
    return make_store(tmp_path_factory.mktemp("store") / "s", documents, vocabulary=2**16, separator=0)


def text_of(store: Any, **changes: Any) -> StageText:
    value = {"length": 64, "mix": TEXT, "steps": 12, "slots_per_step": 4, "seed": 3, "stage": 1, "encode": no_encode}
    return StageText(store=store, **value | changes)


def curriculum(kind: str) -> Any:
    return kind_class(PACKAGE, kind)(**SETTINGS.get(kind, {}))


def same(one: list[Row], two: list[Row]) -> bool:
    names = ("tokens", "targets", "weights", "positions")
    return len(one) == len(two) and all(
        a.spans == b.spans and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)
        for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("kind", kinds(PACKAGE))
def test_conformance(kind: str, store: Any) -> None:
    text = text_of(store)
    slots = curriculum(kind).slots(text)
    slots.check()
    order = {number: slots.slot(number) for number in range(48)}
    follows = {
        int(token): int(target)
        for number in range(len(store))
        for token, target in itertools.pairwise(store.read(number, 0, int(store.lengths[number])).tolist())
    }
    for step in range(12):
        rows = [row for number in range(4 * step, 4 * step + 4) for row in order[number]]
        assert len({len(row.tokens) for row in rows}) == 1, "a step has rows of one length"
        assert sum(len(row.tokens) for row in rows) == 4 * 64, "and always as many tokens"
        for row in rows:
            assert row.spans[0] == 0
            assert row.spans[-1] == len(row.tokens)
            for start, stop in itertools.pairwise(row.spans):
                assert row.positions[start:stop].tolist() == list(range(stop - start))
            for token, target, weight in zip(row.tokens, row.targets, row.weights, strict=True):
                assert not weight or follows[int(token)] == target
    # Another process, asked in another order, as after a resume or on another rank.
    for ranks in (1, 2, 4):
        again = curriculum(kind).slots(text)
        for rank in range(ranks):
            for number in range(47 - rank, -1, -ranks):
                assert same(again.slot(number), order[number])
    assert not all(same(curriculum(kind).slots(text_of(store, seed=4)).slot(n), order[n]) for n in range(8))
    facts = slots.lengths().facts(64)
    assert 0 < facts["attention_share"] <= 1
    assert len(slots.repeats()) == 1


def test_statistics_by_brute_force(store: Any) -> None:
    slots = curriculum("ladder").slots(text_of(store))
    rows = [row for number in range(48) for row in slots.slot(number)]
    found = slots.lengths()
    lengths = [stop - start for row in rows for start, stop in itertools.pairwise(row.spans)]
    before = [position for row in rows for position in row.positions.tolist()]
    assert found.mean_length == pytest.approx(sum(lengths) / len(lengths))
    assert found.mean_context == pytest.approx(sum(before) / len(before))
    whole = Lengths(counts={64: 3})
    assert (whole.mean_context, whole.attention_share(64)) == (31.5, 1.0)


# -- Dataset Decomposition -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "tokens", "length", "context"),
    [
        (range(6, 14), [3, 6, 10, 17, 21, 17, 13, 9], 482.178, 1017.83),
        (range(6, 14), [1] * 8, 257.004, 1019.5),
        (range(10, 11), [1], 1024.0, 511.5),
        (range(6, 12), [1] * 6, 195.048, 335.5),
        (range(8, 14), [1] * 6, 780.190, 1343.5),
        (range(8, 18), [1] * 10, 1281.0, 13_094.0),
        (range(8, 21), [1] * 13, 1664.0, 80_649.0),
        (
            range(8, 14),
            [3_732_930_560, 6_287_261_696, 7_769_948_160, 6_615_465_984, 5_407_506_432, 4_732_223_488],
            872.854,
            1252.855,
        ),
        (
            range(8, 14),
            [579_862_528, 816_840_704, 871_366_656, 723_517_440, 498_073_600, 305_135_616],
            726.478,
            985.125,
        ),
    ],
)
def test_the_papers_statistics(levels: range, tokens: list[int], length: float, context: float) -> None:
    found = Lengths(counts={1 << level: share / (1 << level) for level, share in zip(levels, tokens, strict=True)})
    digits = 3 if length % 1 else 0
    assert round(found.mean_length, digits) == length
    assert found.mean_context == pytest.approx(context, abs=6e-3 if context < 13_000 else 0.5)


def test_share_of_attention_work() -> None:
    equal = Lengths(counts={1 << level: 1 / (1 << level) for level in range(8, 14)})
    assert round(equal.attention_share(8192), 3) == 0.328
    million = Lengths(counts={1 << level: 1 / (1 << level) for level in range(8, 21)})
    assert round(million.attention_share(2**20), 3) == 0.154


@pytest.mark.parametrize(
    ("tokens", "levels", "sizes", "tail"),
    [
        (1_001, range(8, 14), {9: 1, 8: 1}, 232),
        (221_850, range(8, 14), {13: 27, 9: 1}, 153),  # the tokens of Emma and its separator
        (221_850, range(8, 18), {17: 1, 16: 1, 14: 1, 13: 1, 9: 1}, 153),
    ],
)
def test_documents_in_powers_of_two(tokens: int, levels: range, sizes: dict[int, int], tail: int) -> None:
    pieces = decompose(np.array([tokens]), np.array([7]), levels)
    assert {level: len(found) for level, found in zip(levels, pieces, strict=True) if len(found)} == sizes
    kept = sum(len(found) << level for level, found in zip(levels, pieces, strict=True))
    assert tokens - 1 - kept == tail
    cuts = sorted((start, level) for level, found in zip(levels, pieces, strict=True) for _, start in found.tolist())
    assert [start for start, _ in cuts] == [0, *itertools.accumulate(1 << level for _, level in cuts)][:-1]
    assert [level for _, level in cuts] == sorted((level for _, level in cuts), reverse=True), "the longest first"
    assert {document for found in pieces for document, _ in found.tolist()} == {7}


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 2_000), min_size=1, max_size=8),
    low=st.integers(1, 6),
    count=st.integers(1, 5),
    shred=st.booleans(),
)
def test_no_pair_is_lost_but_the_tails(lengths: list[int], low: int, count: int, shred: bool) -> None:
    levels = range(low, low + count)
    draw = np.random.default_rng(0) if shred else None
    pieces = decompose(np.array(lengths), np.arange(len(lengths)), levels, draw)
    pairs: Counter[tuple[int, int]] = Counter()
    for level, found in zip(levels, pieces, strict=True):
        for document, start in found.tolist():
            pairs.update((document, at) for at in range(start, start + (1 << level)))
    assert not pairs or max(pairs.values()) == 1
    for document, length in enumerate(lengths):
        covered = sorted(at for owner, at in pairs if owner == document)
        assert covered == list(range(len(covered))), "from the first token on, without a gap"
        assert max(0, length - 1) - len(covered) in range(1 << low)
    if not shred:
        for document, length in enumerate(lengths):
            top = sum(1 for owner, _ in pieces[-1].tolist() if owner == document)
            assert top == max(0, length - 1) >> levels[-1], "a long document keeps its longest pieces"


def test_shredding_is_off_and_leaves_scraps_when_on() -> None:
    assert not Buckets().shred_long
    pieces = decompose(np.array([2**20 + 1]), np.array([0]), range(8, 14), np.random.default_rng(1))
    sizes = [1 << level for level, found in zip(range(8, 14), pieces, strict=True) for _ in found]
    tokens = np.array([len(found) << level for level, found in zip(range(8, 14), pieces, strict=True)])
    assert np.mean(sizes) == pytest.approx(780, rel=0.1)
    assert tokens / tokens.sum() == pytest.approx([1 / 6] * 6, abs=0.05), "as many tokens in every bucket"


def test_one_pass_over_all_pieces_uses_each_once(store: Any) -> None:
    """With the steps of one pass, every piece of the buckets is trained on once, in rows of one document."""
    entry = Buckets(shortest=4, cycles=2)
    pieces = decompose(store.lengths, np.arange(len(store)), entry.levels(64))
    total = sum(len(found) << level for level, found in zip(entry.levels(64), pieces, strict=True))
    text = text_of(store, steps=total // 64, slots_per_step=1)
    slots = entry.slots(text)
    used = Counter(slots.piece(number, row) for number in range(text.steps) for row in range(len(slots.slot(number))))
    known = {
        (document, start, 1 << level)
        for level, found in zip(entry.levels(64), pieces, strict=True)
        for document, start in found.tolist()
    }
    assert used.keys() <= known
    for size in (4, 8, 16, 32, 64):
        counts = [used[piece] for piece in known if piece[2] == size]
        assert max(counts) - min(counts) <= 1, "a piece comes again only when all of its length were there"
    assert len(known) - len(used) <= 5 * 16, "less than a slot of each bucket is left over, or comes twice"
    assert slots.repeats() == [pytest.approx(1.0, abs=0.05)]
    more = entry.slots(text_of(store, steps=3 * (total // 64), slots_per_step=1))
    counts = Counter(more.piece(n, row) for n in range(3 * (total // 64)) for row in range(len(more.slot(n))))
    for size in (4, 8, 16, 32, 64):
        times = [counts[piece] for piece in known if piece[2] == size]
        assert max(times) - min(times) <= 1, size
    assert max(counts.values()) > 2


@pytest.mark.parametrize("odds", ["natural", "uniform", "grow_linear", "grow_p2", "grow_p100"])
def test_mean_length_by_eighth_of_a_cycle(odds: Any) -> None:
    expected = {
        "natural": [10.5] * 8,
        "uniform": [10.5] * 8,
        "grow_linear": [9.67, 9.67, 9.66, 9.66, 9.88, 10.79, 11.89, 12.78],
        "grow_p2": [8.90, 8.90, 9.25, 9.91, 10.73, 11.44, 12.08, 12.78],
        "grow_p100": [8.01, 8.66, 9.33, 10.01, 11.00, 11.66, 12.33, 13.00],
    }[odds]
    weights = Buckets(odds=odds).weights(8192)
    eighths = np.zeros(8)
    for seed in range(10):
        order = drawn_order([400] * 6, weights, cycles=1, key=(seed,))
        assert Counter(order) == dict.fromkeys(range(6), 400)
        eighths += np.array(order).reshape(8, -1).mean(axis=1) + 8
    assert eighths / 10 == pytest.approx(expected, abs=0.1 if odds != "grow_linear" else 0.13)


def test_every_cycle_has_its_part_and_the_longest_comes_first() -> None:
    steps = [37, 11, 8, 3]
    order = drawn_order(steps, [8.0, 4.0, 2.0, 1.0], cycles=4, key=(5, 2))
    assert order[0] == 3
    assert Counter(order) == dict(enumerate(steps))
    ends = [0, *(sum((cycle + 1) * n // 4 for n in steps) for cycle in range(4))]
    for cycle in range(1, 4):
        here = Counter(order[ends[cycle] : ends[cycle + 1]])
        assert all(abs(here[bucket] - n / 4) < 1 for bucket, n in enumerate(steps))


@given(steps=st.integers(1, 500), tokens=st.lists(st.integers(0, 10**12), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_apportioned_steps(steps: int, tokens: list[int]) -> None:
    if not sum(tokens):
        tokens[0] = 1
    found = apportioned(steps, tokens)
    assert sum(found) == steps
    assert all(abs(n - steps * entry / sum(tokens)) < 1 for n, entry in zip(found, tokens, strict=True))


@pytest.mark.parametrize(
    ("settings_of", "length", "mix"),
    [
        ({"shortest": 48}, 64, TEXT),
        ({"shortest": 16}, 96, TEXT),
        ({"shortest": 128}, 64, TEXT),
        ({"shortest": 16}, 64, (MixPart(share=0.5), MixPart(share=0.5, length=32))),
        ({"shortest": 16}, 64, (MixPart(share=1.0, probe=Needle()),)),
        ({"shortest": 16}, 64, (MixPart(share=1.0, length=32),)),
    ],
)
def test_buckets_that_cannot_be(settings_of: dict[str, int], length: int, mix: Any) -> None:
    with pytest.raises(ValueError, match="curriculum buckets"):
        Buckets(**settings_of).check(length=length, mix=mix)


def test_documents_too_short_for_any_piece(make_store: Any, tmp_path: Path) -> None:
    short = make_store(tmp_path / "s", [[1, 2], [3]], vocabulary=10, separator=0)
    with pytest.raises(DataError) as error:
        Buckets(shortest=32).slots(text_of(short))
    assert error.value.code == "data.no-pieces"


# -- windows ---------------------------------------------------------------------------------------------------------


def test_the_ladders_window_grows_as_its_formula() -> None:
    """w(t) = min(w_e, w_s + floor(a t)): with a = (w_e - w_s) / (growth · steps) it is whole after `growth`."""
    found = [Ladder(start=32, growth=0.6).window(step, steps=1_000, length=8_192) for step in range(1_000)]
    slope = (8_192 - 32) / 600
    assert found == [min(8_192, 32 + math.floor(slope * step + 1e-9)) for step in range(1_000)]
    assert (found[0], found[600], found[-1]) == (32, 8_192, 8_192)
    assert found[599] < 8_192
    assert sorted(found) == found


def test_the_cycles_windows() -> None:
    assert Cyclic().shares() == [0.25, 0.5, 1.0, 0.5, 0.25, 0.5, 1.0, 0.5, 0.25]
    found = [Cyclic(phases=5).window(step, steps=10, length=64) for step in range(10)]
    assert found == [16, 16, 32, 32, 64, 64, 32, 32, 16, 16]


def test_a_window_hides_context_and_moves_no_token(store: Any) -> None:
    plain = StageRows(store, length=64, mix=TEXT, seed=3, stage=1, encode=no_encode)
    for number in range(20):
        row = plain.row(number)
        narrow = cut(row, 10)
        assert {*narrow.spans} == {*row.spans, *range(0, 64, 10)}
        for name in ("tokens", "targets", "weights"):
            assert np.array_equal(getattr(narrow, name), getattr(row, name))
        assert cut(row, 64) is row


@pytest.mark.parametrize("entry", [Ladder(), Cyclic()])
def test_windows_take_no_probes(entry: Any) -> None:
    with pytest.raises(ValueError, match="takes no probes"):
        entry.check(length=64, mix=(MixPart(share=1.0, probe=Needle()),))
    for bad, length in ((Ladder(start=64), 64), (Cyclic(start=0.01), 64)):
        with pytest.raises(ValueError, match="starts at"):
            bad.check(length=length, mix=TEXT)
    entry.check(length=64, mix=TEXT)


def test_a_recipe_names_them_and_their_checks_hold(micro_stage: Any) -> None:
    from pydantic import ValidationError

    assert micro_stage({"kind": "buckets", "shortest": 16}).curriculum == Buckets(shortest=16)
    assert micro_stage(None).curriculum.kind == "stages"
    with pytest.raises(ValidationError, match="no power of two"):
        micro_stage({"kind": "buckets", "shortest": 17})


@pytest.fixture
def micro_stage() -> Any:
    from longspan.pipeline.recipe import Stage

    def make(entry: Any) -> Stage:
        value = {"length": 64, "tokens": 640, "batch_tokens": 64, "learning_rate": 1e-3, "rope": {"kind": "default"}}
        return Stage.model_validate_json(json.dumps(value | ({"curriculum": entry} if entry else {})))

    return make
