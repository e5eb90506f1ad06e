"""Positions that jump: where they may lie, how far they reach, and that nothing else of a row changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from longspan.data.curricula.ladder import Ladder
from longspan.data.rows import StageRows, jumping
from longspan.data.settings import MixPart
from longspan.data.tokenize import plain_encode
from longspan.pipeline.recipe import Stage
from longspan.probes.needle import Needle
from longspan.rope.methods.theta_law import ThetaLaw


@settings(max_examples=200)
@given(count=st.integers(1, 300), more=st.integers(0, 5000), pieces=st.integers(2, 40), seed=st.integers(0, 99))
def test_they_begin_at_0_grow_and_stay_below_the_reach(count: int, more: int, pieces: int, seed: int) -> None:
    reach = count + more
    found = jumping(count, reach=reach, pieces=pieces, rng=np.random.default_rng(seed))
    assert found.dtype == np.int64
    assert found.shape == (count,)
    assert found[0] == 0
    assert found[-1] < reach
    steps = np.diff(found)
    assert (steps >= 1).all()
    assert (steps > 1).sum() <= pieces - 1


def test_every_distance_up_to_the_reach_comes_up() -> None:
    rng, reach, count = np.random.default_rng(0), 10_000, 100
    rows = [jumping(count, reach=reach, pieces=4, rng=rng) for _ in range(2000)]
    ends = np.array([row[-1] for row in rows])
    # The end is uniform over what there is: count - 1 … reach - 1.
    assert ends.min() < 200
    assert ends.max() > reach - 200
    assert ends.mean() == pytest.approx((count - 1 + reach - 1) / 2, rel=0.03)
    # Three jumps share what is left out alike: each is a third of it in the mean.
    jumps = np.array([np.sort(np.diff(row))[-3:] - 1 for row in rows if len(row) == count])
    assert jumps.sum(axis=1) == pytest.approx(ends - (count - 1))
    places = np.concatenate([np.flatnonzero(np.diff(row) > 1) for row in rows])
    assert np.histogram(places, bins=3, range=(0, count - 1))[0] / len(places) == pytest.approx([1 / 3] * 3, abs=0.02)


def row_of(store: Any, mix: tuple[MixPart, ...], sample: int, encode: Any) -> Any:
    return StageRows(store, length=256, mix=mix, seed=5, stage=0, encode=encode).row(sample)


@pytest.mark.parametrize("probe", [None, Needle()])
def test_only_positions_change(make_store: Any, tokenizer: Any, tmp_path: Path, probe: Any) -> None:
    encode = plain_encode(tokenizer)
    generator = np.random.default_rng(1)
    documents = [generator.integers(1, 300, size).tolist() for size in (90, 700, 300)]
    store = make_store(tmp_path / "s", documents, vocabulary=320, separator=0)
    near = (MixPart(share=1.0, probe=probe),)
    far = (MixPart(share=1.0, probe=probe, reach=4096, pieces=5),)
    jumped = False
    for sample in range(6):
        one, two = row_of(store, near, sample, encode), row_of(store, far, sample, encode)
        assert one.spans == two.spans
        for name in ("tokens", "targets", "weights"):
            assert np.array_equal(getattr(one, name), getattr(two, name))
        for start, stop in zip(two.spans, two.spans[1:], strict=False):
            assert two.positions[start] == 0
            assert (np.diff(two.positions[start:stop]) >= 1).all()
            assert two.positions[start:stop].max() < 4096
        jumped |= int(two.positions.max()) > 512
        again = row_of(store, far, sample, encode)
        assert np.array_equal(again.positions, two.positions)
    assert jumped
    assert not np.array_equal(row_of(store, far, 0, encode).positions, row_of(store, far, 1, encode).positions)


def stage(**changes: Any) -> Stage:
    value = {"length": 64, "tokens": 128, "batch_tokens": 64, "learning_rate": 1e-3, "rope": ThetaLaw()}
    return Stage(**value | changes)


def test_a_stage_is_trained_for_its_reach() -> None:
    assert stage().reach == 64
    mix = (MixPart(share=0.5, reach=512), MixPart(share=0.5, length=32))
    assert stage(mix=mix).reach == 512


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mix": (MixPart(share=1.0, reach=64),)}, "no more than the tokens"),
        ({"mix": (MixPart(share=1.0, reach=128),), "curriculum": Ladder(start=3)}, "counts positions anew"),
        ({"mix": (MixPart(share=1.0, reach=128),), "canaries": {}}, "canaries are planted at distances"),
    ],
)
def test_what_cannot_jump_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        stage(**changes)


def test_pieces_need_a_reach() -> None:
    with pytest.raises(ValidationError, match="pieces without reach"):
        MixPart(share=1.0, pieces=4)
