"""The engine over several ranks against autograd of the plain decoder on one: loss and every gradient."""

import re

import pytest
import torch
from engine_ranks import one_pass, stopped_in_a_layer
from engine_toys import DIVISOR, adapt, plain_loss, toy_batch, toy_decoder
from ranks import end_ranks, run_ranks, start_ranks

from longspan.parallel.mesh import Mesh

EIGHT = {"heads": 8, "kv_heads": 2}
RAGGED = ((0, 5, 6, 21, 37), (0, 37))
CASES = [
    ({}, ((0, 41),), {"tile_tokens": 7, "gradient": "host", "group": 2}),
    (EIGHT | {"tied": True}, RAGGED, {"tile_tokens": 16, "segment": 2, "group": 2}),
    (EIGHT | {"qk_norm": True, "qkv_bias": True}, RAGGED, {"keep": "inputs", "segment": 2, "group": 2}),
    ({"out_bias": True, "mlp_bias": True}, RAGGED, {"adapters": True, "segment": 3, "group": 2}),
]
HEADS = [(4, 4), (4, 2), (8, 2), (6, 2), (14, 2), (4, 1)]
LENGTHS = [((0, 31),), ((0, 33),), ((0, 7, 10, 29),), ((0, 32),)]
MESHES = [
    ("gather", Mesh(ring=2)),
    ("ring", Mesh(ring=2)),
    ("ring", Mesh(ring=3)),
    ("ulysses", Mesh(ulysses=2)),
    ("ulysses", Mesh(ulysses=4)),
    ("grid", Mesh(ring=2, ulysses=2)),
]


def wanted(changes, spans, steering):
    decoder, batch = toy_decoder(**changes), toy_batch(spans)
    if "adapters" in steering:
        adapt(decoder)
    loss = plain_loss(decoder, batch)
    (loss / DIVISOR).backward()
    zero = torch.zeros(())
    return {"loss": loss.detach()} | {n: zero if p.grad is None else p.grad for n, p in decoder.named_parameters()}


def together(answers, name):
    """A gradient of which ranks have the rows from some row on; ranks that have the same ones must agree to the bit."""
    parts = {}
    for answer in answers:
        first, part = answer[name][0], torch.as_tensor(answer[name][1])
        if part.numel() and (first, part.shape) in parts:
            assert torch.equal(parts[first, part.shape], part), "all copies have the same bits"
        elif part.numel():
            parts[first, part.shape] = part
    found = [parts[key] for key in sorted(parts, key=lambda key: key[0])]
    return torch.cat(found) if found[0].ndim else found[0]


def compare(answers, case):
    want = wanted(*case)
    largest = max(float(gradient.norm()) for name, gradient in want.items() if name != "loss")
    for answer in answers:
        assert abs(torch.as_tensor(answer["loss"]) - want["loss"]) <= 1e-6 * abs(want["loss"])
    for name, other in want.items():
        if name == "loss":
            continue
        mine = together(answers, name)
        assert mine.shape == other.shape
        assert (mine - other).norm() <= 1e-5 * max(other.norm(), 0.03 * largest), name


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize(("kind", "mesh"), MESHES, ids=str)
def test_ranks_together_equal_one(kind, mesh, cut):
    answers = run_ranks(mesh.ranks, one_pass, mesh, kind, cut, CASES)
    for number, case in enumerate(CASES):
        compare([rank[number] for rank in answers], case)


@pytest.mark.parametrize(("kind", "mesh"), [MESHES[1], MESHES[3], MESHES[5]], ids=str)
def test_every_head_ratio_and_length(kind, mesh):
    cases = [({"heads": h, "kv_heads": g}, spans, {"group": g}) for h, g in HEADS for spans in LENGTHS]
    cases = [case for case in cases if case[0]["heads"] % mesh.ulysses == 0]
    answers = run_ranks(mesh.ranks, one_pass, mesh, kind, True, cases)
    for number, case in enumerate(cases):
        compare([rank[number] for rank in answers], case)


@pytest.mark.parametrize("mesh", [Mesh(shard=2), Mesh(replicate=2), Mesh(replicate=2, shard=2)], ids=str)
def test_ranks_with_rows_of_their_own(mesh):
    spans = ((0, 37), (0, 5, 6, 21, 37), (0, 36, 37), (0, 37))
    cases = [(EIGHT, spans, {"group": 2, "tile_tokens": 16}), ({}, spans, {"adapters": True, "keep": "inputs"})]
    answers = run_ranks(mesh.ranks, one_pass, mesh, "ring", mesh.shard > 1, cases)
    for number, case in enumerate(cases):
        compare([rank[number] for rank in answers], case)


def test_rows_and_tokens_over_one_mesh():
    mesh, spans = Mesh(shard=2, ulysses=2), ((0, 37), (0, 5, 6, 21, 37))
    answers = run_ranks(4, one_pass, mesh, "ulysses", True, [(EIGHT, spans, {"group": 2, "segment": 2})])
    compare([rank[0] for rank in answers], (EIGHT, spans, {}))


def test_a_batch_with_fewer_tokens_than_ranks_is_refused():
    case = ({}, ((0, 2),), {"group": 2})
    assert run_ranks(3, one_pass, Mesh(ring=3), "ring", True, [case]) == [["engine.few-tokens"]] * 3


def test_a_rank_that_stops_is_named_with_the_exchange_and_the_layer(tmp_path):
    processes = start_ranks(2, stopped_in_a_layer, Mesh(ring=2), str(tmp_path), folder=tmp_path, deadline_seconds=4.0)
    try:
        processes[0][0].join(60)
        told = (tmp_path / "stderr-0").read_text()
        assert processes[0][0].exitcode == 75, told
        waited = r"rank 0 waited in vain in (sum of|ring of) .*, backward of layer [01]: "
        assert re.search(f"{waited}rank 1 is gone or stopped, last seen in .*, backward of layer 1 ", told), told
    finally:
        end_ranks(processes)
