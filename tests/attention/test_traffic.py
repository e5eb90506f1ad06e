"""The bytes that plans count on are those that go out, and those of the formulas in the literature."""

import pytest
import torch
from ranks import run_ranks
from scheme_cases import Case, schedule

from longspan.attention.traffic import Call, Sent, gather, grid, ring, ulysses
from longspan.parallel.mesh import Mesh

LENGTH, WIDTH = 48, 8
FOUR = [
    ("ring", Mesh(ring=4), {}, lambda call: ring(call, ranks=4)),
    ("gather", Mesh(ring=4), {}, lambda call: gather(call, ranks=4)),
    ("ulysses", Mesh(ulysses=4), {}, lambda call: ulysses(call, ranks=4)),
    ("grid", Mesh(ring=2, ulysses=2), {}, lambda call: grid(call, inside=2, across=2)),
    ("grid", Mesh(ring=2, ulysses=2), {"across": "gather"}, lambda call: grid(call, inside=2, across=2, gathered=True)),
]


@pytest.mark.parametrize(("kind", "mesh", "options", "planned"), FOUR, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("heads", [(8, 4), (8, 2), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_sent_was_planned(kind, mesh, options, planned, heads, dtype):
    call = Call(heads=heads[0], kv_heads=heads[1], head_dim=WIDTH, tokens=LENGTH // 4, element_bytes=dtype.itemsize)
    for forward, backward in run_ranks(4, schedule, mesh, kind, options, Case(*heads, LENGTH, dtype=dtype)):
        found = [sum(size for name, size in events if name == "send") for events in (forward, backward)]
        assert found == [planned(call).forward_bytes, planned(call).backward_bytes]


def test_heads_in_stages_send_wide_sums():
    call = Call(heads=4, kv_heads=2, head_dim=WIDTH, tokens=LENGTH // 2)
    case = Case(4, 2, LENGTH, dtype=torch.bfloat16)
    for forward, backward in run_ranks(2, schedule, Mesh(ulysses=2), "ulysses", {"query_width": 1}, case):
        found = [sum(size for name, size in events if name == "send") for events in (forward, backward)]
        planned = ulysses(call, ranks=2, stages=2)
        assert found == [planned.forward_bytes, planned.backward_bytes]


def test_llama_8b_at_a_million_tokens_on_eight_ranks():
    """Gigabytes of a layer, by the formulas of the engine's reference; it leaves lse out, and rounds."""
    call = Call(heads=32, kv_heads=8, head_dim=128, tokens=2**20 // 8)
    a2a, around = ulysses(call, ranks=8), ring(call, ranks=8)
    lse = 7 * 2**17 * 4 * 4
    assert a2a.forward_bytes - lse == pytest.approx(2.35e9, rel=0.01)
    assert a2a.backward_bytes - lse == pytest.approx(4.70e9, rel=0.01)
    assert around.forward_bytes == gather(call, ranks=8).forward_bytes == pytest.approx(3.76e9, rel=0.01)
    assert around.backward_bytes == pytest.approx(12.3e9, rel=0.01)


@pytest.mark.parametrize("ranks", [1, 2, 8, 64])
def test_a_ring_around_one_node_is_a_ring(ranks):
    call = Call(heads=64, kv_heads=8, head_dim=128, tokens=1000)
    assert grid(call, inside=1, across=ranks) == ring(call, ranks=ranks)
    assert grid(call, inside=ranks, across=1) == ulysses(call, ranks=ranks)
    if ranks == 1:
        nothing = Sent(forward_bytes=0, backward_bytes=0, forward_messages=0, backward_messages=0)
        assert ring(call, ranks=1) == gather(call, ranks=1) == ulysses(call, ranks=1) == nothing
