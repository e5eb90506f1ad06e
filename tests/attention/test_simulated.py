"""Schedules of up to 64 ranks, simulated in one process: who sends how many messages of how many bytes to whom.

Formulas are written down here for every pair of ranks; `longspan.attention.traffic` has the sums that plans count on.
Tensors are small and real, so results are compared with those of one device at the same time.
"""

import math
import threading
from collections import Counter
from unittest.mock import patch

import pytest
import torch
from attention_cases import LIMITS, errors, wanted
from scheme_cases import Case, build, places
from simulated import simulate

from longspan.attention.schemes import ring as ring_file
from longspan.attention.traffic import Call, gather, grid, ring, ulysses
from longspan.parallel.mesh import Mesh

WIDTH = 8  # of a head


def run(kind, mesh, options, case):
    """Each rank's tokens and results, and the messages of forward and backward."""

    def rank(axes):
        scheme = build(kind, axes, options)
        mine = places(scheme.layout(case.length, scheme.rank))
        do, q, k, v = (x[:, mine] for x in tensors)
        given = {"runs": case.runs, "window": case.window}
        o, lse = scheme.forward(q, k, v, **given)
        yield
        gradients = scheme.backward(do, q, k, v, o, lse, **given)
        yield
        return [mine, o, lse, *gradients]

    tensors = case.tensors()
    answers, (forward, backward) = simulate(mesh, rank)
    return answers, forward, backward


def pairs(messages):
    """Messages and bytes from each rank to each other."""
    count, size = Counter(), Counter()
    for message in messages:
        count[message.sender, message.receiver] += 1
        size[message.sender, message.receiver] += message.size
    return {pair: (count[pair], size[pair]) for pair in count}


def from_each(messages, ranks):
    """Messages and bytes that each rank sends."""
    found = pairs(messages)
    return [tuple(sum(n[i] for (sender, _), n in found.items() if sender == me) for i in (0, 1)) for me in range(ranks)]


# -- formulas, pair by pair --------------------------------------------------------------------------------------------
# T tokens of a rank, h and g heads of a call, d their width, E bytes of a number, 4 of a sum; R ranks in a ring, A in
# an all-to-all.


def ring_pairs(mesh, *, T, h, g, d, E):
    """Keys and values are one message a hop: R - 1 hops forward; backward R more with their gradients."""
    keys, sums = 2 * g * T * d * E, 2 * g * T * d * 4
    R, step = mesh.ring, mesh.ulysses
    forward, backward = {}, {}
    for rank in range(mesh.ranks):
        after = (rank // step + 1) % R * step + rank % step
        forward[rank, after] = (R - 1, (R - 1) * keys)
        backward[rank, after] = (2 * R - 1, (R - 1) * keys + R * sums)
    return forward, backward


def gather_pairs(mesh, *, T, h, g, d, E):
    """Keys and values to each other rank, and gradients of its keys and values."""
    keys, sums = 2 * g * T * d * E, 2 * g * T * d * 4
    step = mesh.ulysses
    forward, backward = {}, {}
    for rank in range(mesh.ranks):
        for other in range(rank % step, mesh.ranks, step):
            if other != rank:
                forward[rank, other] = (2, keys)
                backward[rank, other] = (4, keys + sums)
    return forward, backward


def ulysses_pairs(mesh, *, T, h, g, d, E, stages=1, kv_stages=1):
    """q, k, v there, o and lse back; do, q, o, lse, k, v there, dq, dk, dv back: each the receiver's heads, or mine."""
    A = mesh.ulysses
    queries, copies = h // A * T * d * E, math.lcm(g, A)
    keys, lse = copies // A * T * d * E, h // A * T * 4
    gradient = copies // A * T * d * (4 if copies > g or stages > kv_stages else E)
    forward, backward = {}, {}
    for rank in range(mesh.ranks):
        for other in range(rank // A * A, rank // A * A + A):
            if other != rank:
                forward[rank, other] = (3 * stages + 2 * kv_stages, 2 * queries + 2 * keys + lse)
                backward[rank, other] = (5 * stages + 4 * kv_stages, 4 * queries + 2 * keys + lse + 2 * gradient)
    return forward, backward


def grid_pairs(mesh, *, T, h, g, d, E, across="ring"):
    """Ulysses inside, and across what a rank holds then: A times the tokens, its own heads."""
    A = mesh.ulysses
    inside = ulysses_pairs(mesh, T=T, h=h, g=g, d=d, E=E)
    outer = {"ring": ring_pairs, "gather": gather_pairs}[across]
    beyond = outer(mesh, T=A * T, h=h // A, g=math.lcm(g, A) // A, d=d, E=E)
    found = []
    for near, far in zip(inside, beyond, strict=True):
        assert not near.keys() & far.keys()
        found.append(near | far)
    return tuple(found)


SCHEDULES = [
    ("ring", lambda n: Mesh(ring=n), {}, ring_pairs, lambda call, mesh: ring(call, ranks=mesh.ring)),
    ("gather", lambda n: Mesh(ring=n), {}, gather_pairs, lambda call, mesh: gather(call, ranks=mesh.ring)),
    ("ulysses", lambda n: Mesh(ulysses=n), {}, ulysses_pairs, lambda call, mesh: ulysses(call, ranks=mesh.ulysses)),
    (
        "grid",
        lambda n: Mesh(ring=n // 4, ulysses=4),
        {},
        grid_pairs,
        lambda call, mesh: grid(call, inside=mesh.ulysses, across=mesh.ring),
    ),
    (
        "grid",
        lambda n: Mesh(ring=n // 8, ulysses=8),
        {"across": "gather"},
        lambda mesh, **sizes: grid_pairs(mesh, across="gather", **sizes),
        lambda call, mesh: grid(call, inside=mesh.ulysses, across=mesh.ring, gathered=True),
    ),
]
NAMES = ["ring", "gather", "ulysses", "grid of 4", "grid of 8, gathered"]


@pytest.mark.parametrize(("kind", "mesh_of", "options", "by_pair", "planned"), SCHEDULES, ids=NAMES)
@pytest.mark.parametrize("ranks", [8, 64])
def test_every_pair_sends_what_the_formula_says(kind, mesh_of, options, by_pair, planned, ranks):
    heads, kv_heads, tokens = 64, 8, 2
    mesh, case = mesh_of(ranks), Case(heads, kv_heads, tokens * ranks, dtype=torch.bfloat16)
    answers, *phases = run(kind, mesh, options, case)
    formula = by_pair(mesh, T=tokens, h=heads, g=kv_heads, d=WIDTH, E=2)
    assert [pairs(messages) for messages in phases] == list(formula)
    plan = planned(Call(heads=heads, kv_heads=kv_heads, head_dim=WIDTH, tokens=tokens), mesh)
    assert from_each(phases[0], ranks) == [(plan.forward_messages, plan.forward_bytes)] * ranks
    assert from_each(phases[1], ranks) == [(plan.backward_messages, plan.backward_bytes)] * ranks
    assert worst(case, answers) <= LIMITS[case.dtype]


@pytest.mark.parametrize(
    ("heads", "options", "stages", "kv_stages"),
    [((64, 32), {"kv_width": 1}, 4, 4), ((64, 8), {"query_width": 2}, 4, 1), ((64, 4), {}, 1, 1)],
)
def test_heads_in_stages_send_more_messages_and_the_same_bytes(heads, options, stages, kv_stages):
    """On eight ranks: stages with keys of their own, stages that share keys, and copies of keys."""
    mesh, case = Mesh(ulysses=8), Case(*heads, 16, dtype=torch.bfloat16)
    _, *phases = run("ulysses", mesh, options, case)
    sizes = {"T": 2, "h": heads[0], "g": heads[1], "d": WIDTH, "E": 2}
    formula = ulysses_pairs(mesh, **sizes, stages=stages, kv_stages=kv_stages)
    assert [pairs(messages) for messages in phases] == list(formula)
    call = Call(heads=heads[0], kv_heads=heads[1], head_dim=WIDTH, tokens=2)
    plan = ulysses(call, ranks=8, stages=stages, kv_stages=kv_stages)
    assert from_each(phases[1], 8) == [(plan.backward_messages, plan.backward_bytes)] * 8


def test_unequal_shares_travel_as_they_are():
    """A ring of 16 over 59 tokens: in step j a rank sends the keys of the rank j places before, however many."""
    ranks, case = 16, Case(4, 2, 59)
    _, forward, backward = run("ring", Mesh(ring=ranks), {}, case)
    edges = [i * case.length // (2 * ranks) for i in range(2 * ranks + 1)]
    own = [edges[r + 1] - edges[r] + edges[2 * ranks - r] - edges[2 * ranks - 1 - r] for r in range(ranks)]
    hop = 2 * case.kv_heads * WIDTH * 4  # bytes of a token's keys and values in float32, as of their gradients
    for rank in range(ranks):
        after = (rank + 1) % ranks
        around = sum(own[(rank - j) % ranks] for j in range(ranks - 1))
        assert pairs(forward)[rank, after] == (ranks - 1, hop * around)
        home = around - own[rank] + own[(rank + 1) % ranks] + own[rank]
        assert pairs(backward)[rank, after][1] == hop * (around + home)
    assert len(pairs(forward)) == ranks


# -- results -----------------------------------------------------------------------------------------------------------

RESULTS = [
    ("ring", Mesh(ring=8), {}),
    ("ring", Mesh(ring=16), {}),
    ("gather", Mesh(ring=16), {}),
    ("ulysses", Mesh(ulysses=8), {"query_width": 1}),
    ("ulysses", Mesh(ulysses=16), {}),
    ("grid", Mesh(ring=2, ulysses=8), {}),
    ("grid", Mesh(ring=4, ulysses=4), {"across": "gather"}),
]


def together(case, answers):
    """The results of all ranks in the order of the batch."""
    whole = []
    for at in range(1, 6):
        order = torch.tensor([token for mine, *_ in answers for token in mine])
        parts = torch.cat([answer[at] for answer in answers], dim=1)
        whole.append(parts[:, order.argsort()])
    return whole


def worst(case, answers):
    do, q, k, v = case.tensors()
    return max(errors(together(case, answers), wanted(do, q, k, v, runs=case.runs, window=case.window)))


@pytest.mark.parametrize(("kind", "mesh", "options"), RESULTS, ids=str)
@pytest.mark.parametrize("borders", [(), (5, 6, 30, 71)])
def test_many_ranks_equal_one(kind, mesh, options, borders):
    case = Case(16, 4, 101, borders)
    answers, _, _ = run(kind, mesh, options, case)
    assert worst(case, answers) <= LIMITS[torch.float32]


# -- faults that are planted are seen ----------------------------------------------------------------------------------


def test_a_message_too_many_is_seen():
    """Ring steps that send their keys twice."""
    right = ring_file.ring_step

    def twice(x, axis, **given):
        right(x, axis, **given).wait()
        return right(x, axis, **given)

    with patch.object(ring_file, "ring_step", twice):
        _, forward, _ = run("ring", Mesh(ring=8), {}, Case(4, 2, 16))
    plan = ring(Call(heads=4, kv_heads=2, head_dim=WIDTH, tokens=2, element_bytes=4), ranks=8)
    assert set(from_each(forward, 8)) == {(2 * plan.forward_messages, 2 * plan.forward_bytes)}


def test_a_buffer_that_changes_on_its_way_is_seen():
    changed = threading.Event()

    def rank(axes):
        x, axis = torch.ones(3), axes["ring"]
        if axis.rank == 1:
            changed.wait(60)
        pending = ring_file.ring_step(x, axis, shape=(3,))
        if axis.rank == 0:
            x.add_(1)
            changed.set()
        pending.wait()
        yield

    with pytest.raises(AssertionError, match="changed while it was on its way"):
        simulate(Mesh(ring=2), rank)


def test_a_rank_that_fails_ends_the_others():
    def rank(axes):
        axis = axes["ring"]
        if axis.rank == 2:
            raise ValueError("planted")
        ring_file.ring_step(torch.ones(3), axis, shape=(3,)).wait()
        yield

    with pytest.raises(ValueError, match="planted"):
        simulate(Mesh(ring=4), rank)
