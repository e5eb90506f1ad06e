"""Every scheme of the folder equals float64 attention on one rank: o, lse and all gradients, on one to six ranks."""

import functools
import itertools
from dataclasses import fields

import pytest
import torch
from attention_cases import LIMITS, wanted
from ranks import plain, run_ranks
from scheme_cases import AXES, Case, attend, attend_case, build, kinds, schedule

from longspan.attention.functional import Cpu
from longspan.attention.schemes.local import Local
from longspan.parallel.mesh import Mesh

HEADS = [(4, 4), (4, 2), (8, 2), (6, 2), (14, 2), (4, 1)]
LENGTHS = [3, 37, 45, 46, 48]  # fewer tokens than ranks, prime, odd, ragged, divisible
DOCUMENTS = [(), (1, 2, 9, 20, 21, 40)]
WINDOWS = [None, 2, 11, 1000]  # the last hides nothing
CASES = [
    Case(*heads, length, borders, WINDOWS[number % 4])
    for number, (length, borders, heads) in enumerate(itertools.product(LENGTHS, DOCUMENTS, HEADS))
] + [Case(*heads, 37, borders, window) for heads in HEADS[:3] for borders in DOCUMENTS for window in WINDOWS]
FEW = [Case(*heads, length, borders) for heads in ((6, 2), (4, 1)) for length in (5, 47) for borders in DOCUMENTS]


def meshes(kind, ranks):
    """All meshes of so many ranks on the axes that the scheme has."""
    names = [field.name for field in fields(kinds()[kind]) if field.name in AXES]
    for sizes in itertools.product(range(1, ranks + 1), repeat=len(names)):
        mesh = Mesh(**dict(zip(names, sizes, strict=True)))
        if mesh.ranks == ranks:
            yield mesh


def launches():
    """Kind, ranks, mesh and options of each launch."""
    for kind, ranks in itertools.product(kinds(), (1, 2, 3, 4, 6)):
        for mesh in meshes(kind, ranks):
            yield kind, mesh, {}
    yield "grid", Mesh(ring=2, ulysses=2), {"across": "gather"}


def refusal(kind, mesh, case, across="ring"):
    """The code of what a scheme does not do; a new scheme says here what it refuses."""
    if kind in ("ulysses", "grid") and case.heads % mesh.ulysses:
        return "attention.heads"
    hides = case.window is not None and any(stop - start > case.window for start, stop in case.runs)
    if hides and (kind == "ring" or (kind == "grid" and across == "ring")):
        return "attention.window"
    return None


@functools.cache
def oracle(case):
    return wanted(*case.tensors(), runs=case.runs, window=case.window)


def whole(case, parts):
    """What all ranks have, by the places of the tokens; every token must come from exactly one rank."""
    mine = [token for part in parts for token in part[0]]
    assert sorted(mine) == list(range(case.length))
    tensors = zip(*(part[1:] for part in parts), strict=True)
    found = [torch.cat([torch.from_numpy(x) for x in shares], dim=1) for shares in tensors]
    order = torch.tensor(mine).argsort()
    return [x[:, order] for x in found]


def errors(case, parts):
    """The largest differences of o, lse, dq, dk, dv, as a share of the largest value."""
    found, want = whole(case, parts), oracle(case)
    assert [x.shape for x in found] == [x.shape for x in want]
    return [
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(0.5)) for a, b in zip(found, want, strict=True)
    ]


def answers(kind, mesh, options, cases, fault=""):
    """What all ranks say to each case."""
    return zip(*run_ranks(mesh.ranks, attend, mesh, kind, options, cases, fault), strict=True)


@pytest.mark.parametrize(("kind", "mesh", "options"), list(launches()), ids=str)
def test_every_scheme_is_exact(kind, mesh, options):
    cases = CASES if mesh.ranks in (1, 2, 4) else FEW
    for case, parts in zip(cases, answers(kind, mesh, options, cases), strict=True):
        if (code := refusal(kind, mesh, case, **options)) is not None:
            assert set(parts) == {code}, case
            continue
        o, lse, *gradients = errors(case, parts)
        assert max(o, lse) <= 1e-6, (case, o, lse)  # NaN fails, too
        assert max(gradients) <= 1e-5, (case, gradients)


@pytest.mark.parametrize("kind", kinds())
def test_one_rank_needs_no_process_group(kind):
    """And here, unlike on ranks, the shapes of all arrays are checked at every call."""
    scheme = build(kind, {}, {})
    assert (scheme.ranks, scheme.rank) == (1, 0)
    for case in FEW:
        assert max(errors(case, [plain(attend_case(scheme, case))])) <= 1e-5


STAGES = [
    (Mesh(ulysses=2), Case(8, 2, 37, (9, 20)), {"kv_width": 1, "query_width": 1}),
    (Mesh(ulysses=2), Case(8, 4, 37, (9, 20)), {"kv_width": 1, "query_width": 1}),
    (Mesh(ulysses=2), Case(8, 4, 37, (9, 20)), {"kv_width": 1}),
    (Mesh(ulysses=4), Case(8, 2, 37, (), 5), {"query_width": 1}),
    (Mesh(ulysses=4), Case(8, 2, 37, (), 5), {"kv_width": 2}),
]


@pytest.mark.parametrize(("mesh", "case", "options"), STAGES, ids=str)
def test_heads_in_stages(mesh, case, options):
    (parts,) = answers("ulysses", mesh, options, [case])
    o, lse, *gradients = errors(case, parts)
    assert max(o, lse) <= 1e-6
    assert max(gradients) <= 1e-5


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [("ring", Mesh(ring=4)), ("gather", Mesh(ring=4)), ("ulysses", Mesh(ulysses=4)), ("grid", Mesh(ring=2, ulysses=2))],
)
def test_half_precision_loses_little(kind, mesh):
    """Partial results merge and gradients add up in float32: at most twice the error of one rank."""
    case = Case(8, 2, 301, (150,), dtype=torch.bfloat16)
    (many,), (once,) = answers(kind, mesh, {}, [case]), answers("local", Mesh(), {}, [case])
    many, once = errors(case, many), errors(case, once)
    assert all(b <= 2 * a + 1e-4 for a, b in zip(once, many, strict=True)), (once, many)
    assert max(many) <= LIMITS[torch.bfloat16]


def test_long_rectangles_go_backward_by_single_heads():
    """Which takes less memory in a call, and adds up to the same."""
    calls = []

    class Counting(Cpu):
        def backward(self, do, q, k, *rest, causal, window=None):
            calls.append((*q.shape[1:3], *k.shape[1:3], causal))
            return super().backward(do, q, k, *rest, causal=causal, window=window)

    q, k = torch.randn(4, 6, 8), torch.randn(2, 9, 8)
    o, lse = Local(kernel=Cpu()).full(q, k, k)
    found = [Local(kernel=Counting(), long_tokens=tokens).full_backward(q, q, k, k, o, lse) for tokens in (9, 10)]
    assert calls == [(1, 6, 1, 9, False)] * 4 + [(4, 6, 2, 9, False)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


# -- faults that are planted are seen ----------------------------------------------------------------------------------

FAULTS = [
    # In the order o, lse, dq, dk, dv: what must be wrong.
    ("contiguous queries", "ulysses", Mesh(ulysses=2), {"kv_width": 1, "query_width": 1}, (8, 4), "o dq dk dv"),
    ("crossed heads", "ulysses", Mesh(ulysses=2), {}, (4, 2), "o lse dq dk dv"),
    ("dropped step", "ring", Mesh(ring=4), {}, (4, 2), "o lse dq dk dv"),
    ("no way home", "ring", Mesh(ring=4), {}, (4, 2), "dk dv"),
    ("unsummed", "gather", Mesh(ring=2), {}, (4, 2), "dk dv"),
    ("ignored documents", "ring", Mesh(ring=2), {}, (4, 2), "o lse dq dk dv"),
]


@pytest.mark.parametrize(("fault", "kind", "mesh", "options", "heads", "wrong"), FAULTS, ids=[x[0] for x in FAULTS])
def test_a_planted_fault_is_seen(fault, kind, mesh, options, heads, wrong):
    case = Case(*heads, 48, (17,))
    (parts,) = answers(kind, mesh, options, [case], fault=fault)
    found = dict(zip(("o", "lse", "dq", "dk", "dv"), errors(case, parts), strict=True))
    assert all(found[name] > 0.01 for name in wrong.split()), found
    (parts,) = answers(kind, mesh, options, [case])
    assert max(errors(case, parts)) <= 1e-5


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_the_ring_sends_before_it_works():
    """Bytes of float32: keys and values forward; backward their gradients, too, with one more hop."""
    case, ranks = Case(4, 2, 48), 4
    hop = 2 * 2 * (48 // ranks) * 8 * 4  # k and v, key heads, own tokens, width, bytes
    for forward, backward in run_ranks(ranks, schedule, Mesh(ring=ranks), "ring", {}, case):
        assert [event[0] for event in forward] == ["send", "kernel"] * 3 + ["kernel"]
        assert sum(size for name, size in forward if name == "send") == hop * 3
        steps = ["send", "kernel", *["send", "send", "kernel"] * 2, "send", "kernel", "send"]
        assert [event[0] for event in backward] == steps
        assert sum(size for name, size in backward if name == "send") == hop * 3 + hop * 4
        pairs = [queries for name, queries in forward if name == "kernel"]
        assert pairs[0] == 12
        assert set(pairs[1:]) <= {6, 12}  # half the queries and all keys, or all queries and half the keys


def test_ulysses_sends_the_next_heads_before_it_works():
    """q, k, v there and o, lse back; in backward do, q, o, lse, k, v there and dq, dk, dv back."""
    case, ranks = Case(4, 2, 48), 2
    per_head = 48 // ranks * 8 * 4 // ranks  # what one rank of two sends of one head: half of its own tokens
    lse = 48 // ranks * 4 // ranks
    for forward, backward in run_ranks(ranks, schedule, Mesh(ulysses=ranks), "ulysses", {"query_width": 1}, case):
        assert [name for name, _ in forward] == ["send", "send", "kernel", "send", "kernel", "send"], (
            "one call each way"
        )
        assert sum(size for name, size in forward if name == "send") == per_head * (2 * 4 + 2 * 2) + lse * 4
        assert sum(size for name, size in backward if name == "send") == per_head * (4 * 4 + 4 * 2) + lse * 4
        assert {queries for name, queries in forward if name == "kernel"} == {48}
