"""The planner's bytes against those of live tensors while the engine runs, on one rank and on several."""

from dataclasses import replace

import pytest
from live_bytes import LAYERS, SHAPE, TOKENS, peak_of, peak_of_rank
from ranks import run_ranks

from longspan.engine.anchors import anchor_keys
from longspan.engine.run import Engine
from longspan.engine.settings import EngineChoice, Policy
from longspan.parallel.mesh import Mesh
from longspan.plan.memory import predict
from longspan.plan.workload import Spread, States, Workload


def choice_of(keep: Policy, segment: int, *, group: int = 1, tile: int = 128) -> EngineChoice:
    keys = anchor_keys(LAYERS, keep=keep, segment=segment)
    return EngineChoice(
        keep=keep,
        segment=segment,
        tile_tokens=tile,
        loss_tile_tokens=tile,
        group=group,
        anchors=("device",) * len(keys),
    )


@pytest.mark.parametrize(("keep", "segment"), [("attention", 1), ("attention", 2), ("inputs", 2)])
def test_predicted_peak_is_within_five_per_cent(keep: Policy, segment: int) -> None:
    choice = choice_of(keep, segment)
    peak = peak_of(SHAPE, choice, tokens=TOKENS, engine=lambda decoder, tokens: Engine(decoder, choice, tokens=tokens))
    states = States(weight_bytes=4, gradient_bytes=4)
    predicted = predict(Workload(shape=SHAPE, tokens=TOKENS, element_bytes=4, states=states), choice)
    assert predicted.device_bytes == pytest.approx(peak, rel=0.05)


LOCAL = 1024  # tokens of a rank
SPREADS = [
    (Spread(kind="ring", ring=2), 1),
    pytest.param(Spread(kind="ring", ring=3), 4, marks=pytest.mark.slow),
    (Spread(kind="gather", ring=2), 4),
    pytest.param(Spread(kind="ulysses", ulysses=2), 2, marks=pytest.mark.slow),
    (Spread(kind="ulysses", ulysses=2, kv_width=1), 4),
    (Spread(kind="grid", ring=2, ulysses=2), 4),
]


@pytest.mark.parametrize(("spread", "group"), SPREADS, ids=str)
def test_predicted_peak_of_a_rank_is_within_five_per_cent(spread: Spread, group: int) -> None:
    """With four key/value heads, so that what a scheme holds is a large part of it."""
    shape, choice = replace(SHAPE, kv_heads=4), choice_of("attention", 1, group=group, tile=32)
    mesh = Mesh(ring=spread.ring, ulysses=spread.ulysses)
    peaks = run_ranks(mesh.ranks, peak_of_rank, mesh, spread.kind, spread.kv_width, shape, choice, LOCAL)
    states = States(weight_bytes=4, gradient_bytes=4)
    work = Workload(shape=shape, tokens=LOCAL, element_bytes=4, states=states, spread=spread)
    predicted = predict(work, choice)
    assert predicted.device_bytes == pytest.approx(max(peaks), rel=0.05)
