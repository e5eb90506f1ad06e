"""A mesh against one rank: what is equal is called equal, and a fault is found and named."""

import math
from unittest.mock import patch

import pytest
import torch
from ranks import run_ranks
from verify_ranks import LAYERS, batch, decoder, verified

from longspan.engine.step import forward_backward
from longspan.parallel.mesh import Mesh
from longspan.pipeline.parity import (
    BOUNDS,
    Bounds,
    Comparison,
    Difference,
    _distance,
    compare_mesh,
    odd_batch,
    without_targets,
)
from longspan.utils.errors import ConfigError

CASES = ["three documents", "one rank without a target"]
GOOD = [
    (Mesh(ring=2), "ring", 1),
    (Mesh(ulysses=2), "ulysses", 1),
    (Mesh(shard=2), "local", 2),
    (Mesh(replicate=2), "local", 2),
]


@pytest.mark.parametrize(("mesh", "kind", "rows"), GOOD, ids=str)
def test_a_mesh_that_is_right(mesh, kind, rows):
    (ok, told, tables), (other_ok, *nothing) = run_ranks(2, verified, mesh, kind, None, rows)
    assert ok
    assert other_ok
    assert nothing == [[], []]
    assert [case for case, *_ in told] == CASES
    for (_, one_ok, loss_difference, wrong, count), table in zip(told, tables, strict=True):
        assert one_ok
        assert 0 <= loss_difference <= 1e-6
        assert wrong == []
        assert count == 3 + 12 * LAYERS  # every parameter
        assert f"gradients  {count} of {count} within 1e-05" in table
        assert table.count("off by") == 11  # the loss, and the worst ten


def test_a_wrong_merge_is_found():
    (ok, told, tables), (other_ok, *_) = run_ranks(2, verified, Mesh(ring=2), "ring", "merge")
    assert not ok
    assert not other_ok
    assert "blocks.0.q.weight" in told[0][3]
    assert told[0][2] > 1e-6
    assert "NOT equal" in tables[0]
    assert "<- wrong" in tables[0]


def test_a_missing_reduction_is_found_by_the_name_of_its_parameters():
    (ok, told, tables), (other_ok, *_) = run_ranks(2, verified, Mesh(ring=2), "ring", "reduction")
    assert not ok
    assert not other_ok
    assert sorted(told[0][3]) == [f"blocks.{layer}.down.weight" for layer in range(LAYERS)]
    assert told[0][2] <= 1e-6  # the loss alone says nothing
    assert f"gradients  {1 + 13 * LAYERS} of" not in tables[0]
    assert tables[0].count("<- wrong") == LAYERS


def test_rows_that_cannot_be_shared_out():
    with pytest.raises(ConfigError) as caught:
        compare_mesh(decoder, batch(3), world=None, mesh=Mesh(shard=2), scheme=None, choice=None)
    assert caught.value.code == "verify.rows"


def test_an_odd_batch():
    found = odd_batch(batch(2, length=104))
    assert found.tokens.shape == (2, 103)
    assert found.spans == ((0, 14, 48, 103),) * 2
    assert found.positions[1].tolist() == [*range(14), *range(34), *range(55)]
    assert (found.weights == 0).nonzero()[:, 1].tolist() == [13, 47, 102] * 2
    assert torch.equal(found.tokens, batch(2, length=104).tokens[:, :103])
    assert odd_batch(batch(1, length=7)).spans == ((0, 1, 3, 7),)
    with pytest.raises(ConfigError) as caught:
        odd_batch(batch(1, length=6))
    assert caught.value.code == "verify.short"


class Halves:
    """A scheme of two ranks with consecutive tokens."""

    ranks = 2

    def layout(self, length, rank):
        return ((rank * length // 2, (rank + 1) * length // 2),)


def test_the_last_rank_has_no_target():
    found = without_targets(batch(2, length=8), mesh=Mesh(shard=2, ring=2), scheme=Halves())
    assert found.weights.tolist() == [[1] * 8, [1] * 4 + [0] * 4]
    found = without_targets(batch(2, length=8), mesh=Mesh(ring=2), scheme=Halves())
    assert found.weights.tolist() == [[1] * 8, [0] * 8]


def compared(*, loss=1.0, relative=0.0):
    one = Difference(parameter="a", norm=1.0, scale=1.0, relative=relative)
    return Comparison(case="x", loss=1.0, mesh_loss=loss, bounds=Bounds(1e-6, 1e-5), gradients=(one,))


def test_what_is_no_number_is_not_equal():
    assert compared().ok
    assert not compared(loss=math.nan).ok
    assert not compared(loss=1 + 2e-6).ok
    assert not compared(relative=math.inf).ok
    assert "off by inf" in compared(loss=math.nan).table()


def test_the_distance_of_pieces():
    wanted = torch.tensor([[0.0], [0.0], [0.0]])
    pieces = [torch.tensor([[3.0], [0.0]]), torch.tensor([[4.0]]), torch.zeros(0, 1)]
    assert _distance([0, 2, 3], pieces, wanted) == 5.0
    copies = [torch.tensor([[0.0], [0.0]]), torch.tensor([[0.0]]), torch.tensor([[0.0], [6.0]]), torch.tensor([[8.0]])]
    assert _distance([0, 2, 0, 2], copies, wanted) == 10.0  # the worst of the copies
    assert _distance([0, 2], [torch.tensor([[math.nan], [0.0]]), torch.tensor([[4.0]])], wanted) == math.inf
    assert BOUNDS[torch.bfloat16] == Bounds(2e-3, 2e-2)


def test_the_plain_pass_is_exact_when_asked():
    with patch("longspan.engine.step.autocast", side_effect=AssertionError("rounded")):
        assert forward_backward(decoder(), batch(1), divisor=1.0, exact=True) > 0
        with pytest.raises(AssertionError, match="rounded"):
            forward_backward(decoder(), batch(1), divisor=1.0)
