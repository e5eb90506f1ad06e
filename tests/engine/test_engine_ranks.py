"""The engine over several ranks against autograd of the plain decoder on one: loss and every gradient."""

import pytest
import torch
from engine_ranks import one_pass
from engine_toys import DIVISOR, plain_loss, toy_batch, toy_decoder
from ranks import run_ranks

from longspan.parallel.mesh import Mesh

EIGHT = {"heads": 8, "kv_heads": 2}
RAGGED = ((0, 5, 6, 21, 37), (0, 37))
CASES = [
    ({}, ((0, 41),), {"tile_tokens": 7, "gradient": "host", "group": 2}),
    (EIGHT | {"tied": True}, RAGGED, {"tile_tokens": 16, "segment": 2, "group": 2}),
    (EIGHT | {"qk_norm": True, "qkv_bias": True}, RAGGED, {"keep": "inputs", "segment": 2, "group": 2}),
]
MESHES = [
    ("gather", Mesh(ring=2)),
    ("ring", Mesh(ring=2)),
    ("ring", Mesh(ring=3)),
    ("ulysses", Mesh(ulysses=2)),
    ("ulysses", Mesh(ulysses=4)),
    ("grid", Mesh(ring=2, ulysses=2)),
]


def wanted(changes, spans):
    decoder, batch = toy_decoder(**changes), toy_batch(spans)
    loss = plain_loss(decoder, batch)
    (loss / DIVISOR).backward()
    return [loss.detach(), *(parameter.grad for parameter in decoder.parameters())]


@pytest.mark.parametrize(("kind", "mesh"), MESHES, ids=str)
def test_ranks_together_equal_one(kind, mesh):
    answers = run_ranks(mesh.ranks, one_pass, mesh, kind, CASES)
    for number, (changes, spans, _) in enumerate(CASES):
        want = wanted(changes, spans)
        largest = max(float(gradient.norm()) for gradient in want[1:])
        for rank in answers:
            loss, *gradients = (torch.as_tensor(x) for x in rank[number])
            assert abs(loss - want[0]) <= 1e-6 * want[0]
            for mine, other in zip(gradients, want[1:], strict=True):
                assert (mine - other).norm() <= 1e-5 * max(other.norm(), 0.03 * largest)
            for mine, other in zip(gradients, answers[0][number][1:], strict=True):
                assert torch.equal(mine, torch.as_tensor(other)), "all ranks have the same bits"


def test_a_batch_with_fewer_tokens_than_ranks_is_refused():
    case = ({}, ((0, 2),), {"group": 2})
    assert run_ranks(3, one_pass, Mesh(ring=3), "ring", [case]) == [["engine.few-tokens"]] * 3
