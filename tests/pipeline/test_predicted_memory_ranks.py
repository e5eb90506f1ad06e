"""The planner's bytes of a rank against those of live tensors while the engine runs over ranks.

The kernel of the CPU takes its own float32 dq and row sums unseen by torch's dispatcher: they are left out. Of three
layers, the one in the middle has neighbours on their way on both sides.
"""

import pytest
from memory_ranks import live_peaks
from ranks import run_ranks

from longspan.engine.anchors import anchor_keys
from longspan.engine.settings import EngineChoice
from longspan.parallel.mesh import Mesh
from longspan.plan.memory import predict
from longspan.plan.workload import States, Workload
from longspan.shape import ModelShape

LAYERS = 3
SHAPE = ModelShape(
    family="llama",
    layers=LAYERS,
    width=128,
    heads=8,
    kv_heads=4,
    head_dim=32,
    mlp_width=256,
    vocabulary=512,
    norm_epsilon=1e-5,
    tied=False,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    qk_norm=False,
    windows=(None,) * LAYERS,
    trained_length=512,
)


def choice_of(**changes: int) -> EngineChoice:
    keys = anchor_keys(LAYERS, keep="attention", segment=1)
    return EngineChoice(tile_tokens=128, loss_tile_tokens=128, anchors=("device",) * len(keys), **changes)


# Mesh, choice, tokens of the row, and the query heads that a kernel gets at once.
CASES = {
    2: [
        (Mesh(ulysses=2), choice_of(group=4), 4096, 4),
        (Mesh(ulysses=2), choice_of(group=4, kv_width=1), 4096, 2),
        (Mesh(ulysses=2), choice_of(group=2, query_width=1), 4096, 1),
        (Mesh(ring=2), choice_of(group=4), 4096, 8),
        (Mesh(ring=2, across="gather"), choice_of(group=1), 4096, 2),
        (Mesh(shard=2), choice_of(group=2), 1024, 4),
        (Mesh(replicate=2), choice_of(group=2), 1024, 4),
    ],
    4: [
        (Mesh(ulysses=4), choice_of(group=4), 4096, 2),
        (Mesh(ulysses=4), choice_of(group=4, query_width=1), 4096, 1),
        (Mesh(ring=4), choice_of(group=2), 4096, 4),
        (Mesh(ring=4, across="gather"), choice_of(group=2), 4096, 4),
        (Mesh(ring=2, ulysses=2), choice_of(group=4), 4096, 4),
        (Mesh(shard=2, ulysses=2), choice_of(group=4), 2048, 4),
    ],
}


@pytest.mark.parametrize("ranks", [2, 4])
def test_predicted_peak_of_a_rank_is_within_three_per_cent(ranks: int) -> None:
    peaks = run_ranks(ranks, live_peaks, SHAPE, [case[:3] for case in CASES[ranks]])
    states = States(weight_bytes=4, gradient_bytes=4)
    for (mesh, choice, tokens, heads), *live in zip(CASES[ranks], *peaks, strict=True):
        work = Workload(shape=SHAPE, tokens=tokens // mesh.context, element_bytes=4, states=states, mesh=mesh)
        predicted = predict(work, choice)
        unseen = work.tokens * mesh.ulysses * heads * (SHAPE.head_dim + 1) * 4
        assert predicted.device_bytes - unseen == pytest.approx(max(live), rel=0.03), (mesh, choice, predicted.parts)
