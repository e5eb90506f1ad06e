"""Rows by brute force: every pair of every document once an epoch, right targets, positions and borders, no state."""

import itertools
import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from longspan.data import rows as rows_module
from longspan.data.collate import collate
from longspan.data.rows import StageRows, chosen_documents
from longspan.data.settings import MixPart
from longspan.data.store import Origin, StoreWriter, TokenStore
from longspan.data.tokenize import plain_encode
from longspan.probes.key_value import KeyValue
from longspan.probes.needle import Needle
from longspan.probes.passkey import Passkey
from longspan.utils.errors import DataError

SEPARATOR = 0
TEXT = (MixPart(share=1.0),)


def no_encode(text: str) -> list[int]:
    raise AssertionError("text rows encode nothing")


def unique_documents(lengths: list[int]) -> list[list[int]]:
    """Every token of the corpus is another number, so that a token tells where it came from."""
    numbers = itertools.count(1)
    return [[next(numbers) for _ in range(length)] for length in lengths]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    window=st.integers(2, 30),
    packed=st.integers(1, 3),
    epoch=st.integers(0, 2),
    seed=st.integers(0, 5),
)
def test_every_epoch_has_every_pair_once(make_store, lengths, window, packed, epoch, seed) -> None:
    assume(sum(n + 1 for n in lengths) >= window)
    documents = unique_documents(lengths)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder, "s"), documents, vocabulary=2**16, separator=SEPARATOR)
        mix = (MixPart(share=1.0, length=window),)
        length = window * packed
        stage = StageRows(store, length=length, mix=mix, seed=seed, stage=1, encode=no_encode)
        windows = -(-sum(n + 1 for n in lengths) // window)
        first, stop = epoch * windows, (epoch + 1) * windows
        pairs: Counter[tuple[int, int]] = Counter()
        for sample in range(first // packed, -(-stop // packed)):
            row = stage.row(sample)
            for slot in range(packed):
                if first <= sample * packed + slot < stop:
                    here = slice(slot * window, (slot + 1) * window)
                    for token, target, weight in zip(
                        row.tokens[here], row.targets[here], row.weights[here], strict=True
                    ):
                        pairs[int(token), int(target)] += int(weight)
                        assert weight in (0.0, 1.0)
        del store, stage
    expected = Counter(pair for ids in documents for pair in itertools.pairwise([*ids, SEPARATOR]))
    assert +pairs == expected


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    window=st.integers(2, 40),
    packed=st.integers(1, 3),
    sample=st.integers(0, 60),
)
def test_spans_positions_and_targets(make_store, lengths, window, packed, sample) -> None:
    assume(sum(n + 1 for n in lengths) >= window)
    documents = unique_documents(lengths)
    owner = {token: number for number, ids in enumerate(documents) for token in ids}
    following = {pair[0]: pair[1] for ids in documents for pair in itertools.pairwise([*ids, SEPARATOR])}
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder, "s"), documents, vocabulary=2**16, separator=SEPARATOR)
        mix = (MixPart(share=1.0, length=window),)
        length = window * packed
        row = StageRows(store, length=length, mix=mix, seed=3, stage=0, encode=no_encode).row(sample)
        del store
    assert row.spans[0] == 0
    assert row.spans[-1] == length
    assert {window * n for n in range(packed + 1)} <= set(row.spans)
    for start, stop in itertools.pairwise(row.spans):
        assert start < stop
        assert row.positions[start:stop].tolist() == list(range(stop - start))
        inside = row.tokens[start:stop].tolist()
        owners = {owner[token] for token in inside if token != SEPARATOR}
        assert len(owners) <= 1
        for here, token in zip(range(start, stop), inside, strict=True):
            if token == SEPARATOR:  # the end of a document, or filling
                assert row.weights[here] == 0
            else:
                assert row.weights[here] == 1
                assert row.targets[here] == following[token]
                assert here + 1 == stop or row.tokens[here + 1] == following[token]
    assert (row.tokens.dtype, row.targets.dtype, row.positions.dtype) == (np.int64, np.int64, np.int64)
    assert row.weights.dtype == np.float32


def test_documents_are_visited_in_another_order_each_epoch_stage_and_seed(tmp_path, make_store) -> None:
    store = make_store(tmp_path / "s", unique_documents([9] * 40), vocabulary=2**16, separator=SEPARATOR)

    def order(seed: int, stage: int, epoch: int) -> list[int]:
        made = StageRows(store, length=10, mix=TEXT, seed=seed, stage=stage, encode=no_encode)
        return [int(made.row(40 * epoch + n).tokens[0]) for n in range(40)]

    orders = [order(*key) for key in itertools.product(range(2), range(2), range(2))]
    assert all(sorted(one) == sorted(orders[0]) for one in orders)
    assert len({tuple(one) for one in orders}) == 8


@pytest.fixture(scope="module")
def text_store(tmp_path_factory, make_store, make_prose, tokenizer):
    documents = [tokenizer.encode(make_prose(n, seed=n)).ids for n in (4_000, 40, 2_500, 900)]
    return make_store(tmp_path_factory.mktemp("text") / "s", documents, vocabulary=320, separator=SEPARATOR)


MIXED = (
    MixPart(share=0.5),
    MixPart(share=0.3, probe=KeyValue(), answer_weight=3.0, items=3),
    MixPart(share=0.15, length=256),
    MixPart(share=0.05, probe=Passkey(), length=256),
)


def same(left, right) -> bool:
    arrays = ("tokens", "targets", "weights", "positions")
    return left.spans == right.spans and all(np.array_equal(getattr(left, a), getattr(right, a)) for a in arrays)


def test_rows_depend_on_their_number_only(text_store, tokenizer) -> None:
    def make() -> StageRows:
        encode = plain_encode(tokenizer)
        return StageRows(text_store, length=512, mix=MIXED, seed=9, stage=2, encode=encode)

    numbers = list(range(60))
    in_order = make()
    expected = [in_order.row(n) for n in numbers]
    other = make()
    for number in random.Random(1).sample(numbers, len(numbers)):
        assert same(other.row(number), expected[number])
    assert same(make().row(33), expected[33])
    assert not same(expected[0], expected[1])


def test_probe_rows(text_store, tokenizer, monkeypatch) -> None:
    haystacks, made = [], []
    real = rows_module.training_row

    def spy(probe, haystack, **options):
        haystacks.append(haystack)
        made.append(real(probe, haystack, **options))
        return made[-1]

    monkeypatch.setattr(rows_module, "training_row", spy)
    mix = (MixPart(share=1.0, probe=KeyValue(), answer_weight=3.0, items=2, length=300),)
    stage = StageRows(text_store, length=900, mix=mix, seed=1, stage=0, encode=plain_encode(tokenizer))
    flat = np.concatenate([text_store.read(n, 0, int(text_store.lengths[n]) - 1) for n in range(len(text_store))])
    twice = np.concatenate([flat, flat]).tobytes()
    row = stage.row(4)
    assert row.spans == (0, 300, 600, 900)
    assert row.positions.tolist() == list(range(300)) * 3
    assert len(haystacks) == 3
    assert len({haystack.tobytes() for haystack in haystacks}) == 3
    for haystack in haystacks:
        assert len(haystack) == 301
        assert haystack.tobytes() in twice
    for start in (0, 300, 600):
        assert row.targets[start : start + 299].tolist() == row.tokens[start + 1 : start + 300].tolist()
        text = tokenizer.decode([*row.tokens[start : start + 300].tolist(), int(row.targets[start + 299])])
        weighted = [t for t, w in zip(row.targets[start:], row.weights[start : start + 300], strict=False) if w == 3.0]
        answers = tokenizer.decode(weighted).split()
        assert len(answers) == 2
        for answer in answers:  # planted, then asked for
            assert text.count(answer) == 2
    assert row.tokens.tolist() == [i for ids, _ in made for i in ids[:300].tolist()]
    assert row.targets.tolist() == [i for ids, _ in made for i in ids[1:].tolist()]
    assert row.weights.tolist() == [w for _, weights in made for w in weights[1:].tolist()]


def test_haystacks_come_from_everywhere(text_store, tokenizer) -> None:
    mix = (MixPart(share=1.0, probe=Passkey()),)
    stage = StageRows(text_store, length=200, mix=mix, seed=1, stage=0, encode=plain_encode(tokenizer))
    starts = {stage.row(sample).tokens[:4].tobytes() for sample in range(30)}
    assert len(starts) > 25


def test_shares_of_rows(text_store, tokenizer) -> None:
    stage = StageRows(text_store, length=512, mix=MIXED, seed=9, stage=2, encode=plain_encode(tokenizer))
    rows = [stage.row(sample) for sample in range(40)]
    assert abs(sum(3.0 in row.weights for row in rows) - 12) <= 2
    assert abs(sum(256 in row.spans and bool((row.weights == 1).all()) for row in rows) - 2) <= 4


def test_without_a_number_eight_lines_are_planted_with_weight_one(text_store, tokenizer) -> None:
    for mix, lines in (((MixPart(share=1.0, probe=KeyValue()),), 8), ((MixPart(share=1.0, probe=Passkey()),), 1)):
        stage = StageRows(text_store, length=1_500, mix=mix, seed=1, stage=0, encode=plain_encode(tokenizer))
        row = stage.row(0)
        text = tokenizer.decode([*row.tokens.tolist(), int(row.targets[-1])])
        assert text.count("Key ") + text.count("What is the pass key") == (2 * lines if lines > 1 else 1)
        assert set(row.weights.tolist()) == {1.0}


@pytest.mark.parametrize(
    ("part", "length", "code"),
    [
        ({"probe": Needle()}, 20, "probe.length-short"),
        ({"probe": Needle(), "length": 20}, 500, "probe.length-short"),
        ({"probe": KeyValue(key_digits=3), "items": 2_000}, 500, "probe.too-many-items"),
    ],
)
def test_a_part_that_cannot_work_is_found_by_the_check(text_store, tokenizer, part, length, code) -> None:
    # The share is so small that no sample of a short run need ever belong to the part.
    mix = (MixPart(share=0.999), MixPart(share=0.001, **part))
    stage = StageRows(text_store, length=length, mix=mix, seed=1, stage=0, encode=plain_encode(tokenizer))
    stage.row(0)
    with pytest.raises(DataError) as error:
        stage.check()
    assert (error.value.code, error.value.where) == (code, "mix.1")


def test_the_check_builds_a_row_of_each_part_and_keeps_a_place_that_is_named(text_store, monkeypatch) -> None:
    asked = []

    def refuse(probe, haystack, **options):
        asked.append((probe, options["length"]))
        if len(asked) == 3:
            raise DataError("probe.some", "what", where="a place")
        return np.ones(options["length"] + 1, dtype=np.int64), np.ones(options["length"] + 1, dtype=np.float32)

    monkeypatch.setattr(rows_module, "training_row", refuse)
    stage = StageRows(text_store, length=512, mix=MIXED, seed=9, stage=2, encode=no_encode)
    with pytest.raises(DataError) as error:
        stage.check()
    assert error.value.where == "a place"
    assert asked == [(KeyValue(), 512), (Passkey(), 256), (Passkey(), 256)]


def test_too_little_text(tmp_path, make_store) -> None:
    empty = make_store(tmp_path / "empty", [], vocabulary=10, separator=0)
    short = make_store(tmp_path / "short", [[1] * 100] * 2, vocabulary=10, separator=0)
    probe = (MixPart(share=1.0, probe=Passkey()),)
    for store, mix, code in [
        (empty, TEXT, "data.text-short"),
        (short, (MixPart(share=1.0, length=250),), "data.text-short"),
        (empty, probe, "data.haystack-short"),
        (short, probe, "data.haystack-short"),
    ]:
        with pytest.raises(DataError) as error:
            StageRows(store, length=mix[0].length or 200, mix=mix, seed=0, stage=0, encode=no_encode)
        assert error.value.code == code
    with pytest.raises(DataError, match="and 48 tokens are missing"):  # two documents of 101 tokens
        StageRows(short, length=250, mix=TEXT, seed=0, stage=0, encode=no_encode)
    StageRows(short, length=202, mix=TEXT, seed=0, stage=0, encode=no_encode).check()
    StageRows(short, length=199, mix=probe, seed=0, stage=0, encode=no_encode)


def test_collate(text_store, tokenizer) -> None:
    stage = StageRows(text_store, length=512, mix=MIXED, seed=9, stage=2, encode=plain_encode(tokenizer))
    rows = [stage.row(n) for n in range(3)]
    batch = collate(rows)
    assert batch.tokens.shape == (3, 512)
    for index, row in enumerate(rows):
        assert batch.tokens[index].tolist() == row.tokens.tolist()
        assert batch.targets[index].tolist() == row.targets.tolist()
        assert batch.weights[index].tolist() == row.weights.tolist()
        assert batch.positions[index].tolist() == row.positions.tolist()
        assert batch.spans[index] == row.spans


# -- which documents a part takes --------------------------------------------------------------------------------------


@pytest.fixture
def shelves(tmp_path: Path):
    """A store of books and pages; a token tells its document: document n has the tokens from 1,000·(n + 1) on."""
    lengths = {"books/a": 300, "books/b": 90, "web/c": 40, "web/d": 199, "web/e": 30, "code/f": 500}
    origin = Origin(vocabulary=2**16, separator=SEPARATOR, tokenizer_sha256="", fingerprint="", quarantine={})
    with StoreWriter(tmp_path / "s", origin) as writer:
        for number, (name, length) in enumerate(lengths.items()):
            writer.add(name, [np.arange(length, dtype=np.uint32) + 1_000 * (number + 1)])
        writer.finish()
    return TokenStore.open(tmp_path / "s")


def owners(row) -> set[int]:
    return {int(token) // 1_000 - 1 for token in row.tokens if token != SEPARATOR}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, {0, 1, 2, 3, 4, 5}),
        ({"documents": ("books/*",)}, {0, 1}),
        ({"documents": ("books/*", "code/*")}, {0, 1, 5}),
        ({"least_tokens": 199}, {0, 3, 5}),
        ({"documents": ("web/*",), "most_tokens": 40}, {2, 4}),
        ({"least_tokens": 40, "most_tokens": 90}, {1, 2}),
    ],
)
def test_parts_take_their_documents_only(shelves, choice, expected) -> None:
    part = MixPart(share=1.0, **choice)
    assert set(chosen_documents(shelves, part).tolist()) == expected
    tokens = sum(int(shelves.lengths[n]) for n in expected)
    stage = StageRows(shelves, length=20, mix=(part,), seed=0, stage=0, encode=no_encode)
    epoch = -(-tokens // 20)
    seen: Counter[int] = Counter()
    for sample in range(epoch):
        row = stage.row(sample)
        assert owners(row) <= expected
        seen.update(int(token) for token in row.tokens if token != SEPARATOR)
    assert set(seen.values()) == {1}
    assert len(seen) == tokens - len(expected), "every token once an epoch"
    assert stage.repeats(3 * epoch) == [pytest.approx(3 * epoch * 20 / tokens)]


def test_shares_of_sources_and_lengths_are_exact_after_any_resume(shelves) -> None:
    mix = (
        MixPart(share=0.35, documents=("web/*",), least_tokens=100),
        MixPart(share=0.15, documents=("web/*",), most_tokens=99, length=10),
        MixPart(share=0.5, documents=("books/*",)),
    )
    parts = [{3}, {2, 4}, {0, 1}]
    counts: Counter[int] = Counter()
    for sample in range(400):
        stage = StageRows(shelves, length=20, mix=mix, seed=2, stage=1, encode=no_encode)  # a resume before every row
        (part,) = [n for n, documents in enumerate(parts) if owners(stage.row(sample)) <= documents]
        counts[part] += 1
        assert all(abs(counts[n] - (sample + 1) * entry.share) <= 2 for n, entry in enumerate(mix))
    assert counts == {0: 140, 1: 60, 2: 200}


def test_probes_hide_their_lines_in_the_chosen_documents(shelves) -> None:
    part = MixPart(share=1.0, probe=Passkey(), documents=("code/*",))
    encode = lambda text: [60_000 + ord(c) for c in text]  # noqa: E731
    stage = StageRows(shelves, length=300, mix=(part,), seed=0, stage=0, encode=encode)
    for sample in range(5):
        assert {n for n in owners(stage.row(sample)) if n < 10} == {5}
    assert stage.repeats(5) == [0.0]


def test_parts_without_documents(shelves) -> None:
    for choice in ({"documents": ("film/*",)}, {"least_tokens": 501}, {"documents": ("web/*",), "most_tokens": 29}):
        with pytest.raises(DataError) as error:
            StageRows(shelves, length=20, mix=(MixPart(share=1.0, **choice),), seed=0, stage=0, encode=no_encode)
        assert error.value.code == "data.mix-empty"
    with pytest.raises(ValueError, match="no document has"):
        MixPart(share=1.0, least_tokens=5, most_tokens=4)


def test_without_borders_a_row_is_one_stream(shelves) -> None:
    """Concatenate and chunk: as with borders, but for the borders and the targets of separators."""
    parts = [(MixPart(share=1.0, borders=borders),) for borders in (True, False)]
    apart, joined = (StageRows(shelves, length=64, mix=mix, seed=4, stage=0, encode=no_encode) for mix in parts)
    crossed = 0
    for sample in range(19):
        one, two = apart.row(sample), joined.row(sample)
        assert np.array_equal(one.tokens, two.tokens)
        text = int(two.spans[1])
        assert two.spans in ((0, 64), (0, text, 64))
        assert two.positions[:text].tolist() == list(range(text))
        inside = [border - 1 for border in one.spans[1:-1] if border < text]
        crossed += len(inside)
        for place in range(64):
            if place in inside:
                assert (two.targets[place], two.weights[place]) == (two.tokens[place + 1], 1.0)
            else:
                assert (two.targets[place], two.weights[place]) == (one.targets[place], one.weights[place])
    assert crossed > 3
    with pytest.raises(ValueError, match="keep to themselves"):
        MixPart(share=1.0, borders=False, probe=Needle())
