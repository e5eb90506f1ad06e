"""Places on the mesh, exhaustively, against a grid of numbers; torch's groups agree."""

import itertools

import numpy as np
import pytest
from rank_functions import mesh_axes, wrong_mesh
from ranks import run_ranks

from longspan.parallel.mesh import AXES, Mesh
from longspan.utils.errors import ConfigError

SIZES = list(itertools.product((1, 2, 3), (1, 2, 3), (1, 2, 4), (1, 2, 3)))


def mesh_of(sizes):
    return Mesh(**dict(zip(AXES, sizes, strict=True)))


@pytest.mark.parametrize("sizes", SIZES)
def test_places(sizes):
    mesh, grid = mesh_of(sizes), np.arange(np.prod(sizes)).reshape(sizes)
    assert mesh.ranks == grid.size
    assert mesh.context == sizes[2] * sizes[3]
    for place in np.ndindex(*sizes):
        rank = int(grid[place])
        assert mesh.place(rank) == place
        for index, name in enumerate(AXES):
            along = grid[tuple(slice(None) if i == index else at for i, at in enumerate(place))]
            assert mesh.peers(name, rank) == tuple(along)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 64])
def test_shorter_rows_need_fewer_ranks_each(rows):
    for mesh in map(mesh_of, SIZES):
        check_shorter_rows(mesh, rows)


def check_shorter_rows(mesh, rows):
    short = mesh.for_rows(rows)
    assert short.ranks == mesh.ranks
    assert short.replicate == mesh.replicate, "weights stay cut as they are"
    parts = mesh.context // short.context
    assert rows % parts == 0, "every part has as many rows"
    assert not any(rows % more == 0 and mesh.context % more == 0 for more in range(parts + 1, mesh.context + 1))
    assert mesh.ulysses % short.ulysses == 0, "what divides the heads still does"
    for rank in range(mesh.ranks):
        here, there = ({r for r in range(mesh.ranks) if r // m.context == rank // m.context} for m in (short, mesh))
        assert here <= there


def test_a_fitting_mesh_passes():
    for sizes in SIZES:
        mesh_of(sizes).check(int(np.prod(sizes)))


@pytest.mark.parametrize(
    ("sizes", "ranks", "fix"),
    [
        ((1, 1, 4, 2), 16, "replicate = 2 or shard = 2 or ring = 8 or ulysses = 4"),
        ((2, 1, 2, 2), 4, "replicate = 1 or ring = 1 or ulysses = 1"),
        ((1, 1, 3, 1), 8, "ring = 8"),
        ((1, 1, 3, 5), 8, "degrees that divide 8 ranks: 1, 2, 4, 8"),
    ],
)
def test_a_mesh_that_does_not_fit(sizes, ranks, fix):
    with pytest.raises(ConfigError) as caught:
        mesh_of(sizes).check(ranks)
    assert caught.value.code == "parallel.mesh"
    assert caught.value.fix == fix
    assert f"for {ranks} ranks" in caught.value.what


def test_an_axis_has_ranks():
    with pytest.raises(ConfigError, match="ring = 0 ranks") as caught:
        Mesh(ring=0)
    assert caught.value.code == "parallel.mesh"


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 1, 2, 2), (2, 1, 1, 2), (1, 3, 2, 1)])
def test_groups_of_torch_agree(sizes):
    mesh = mesh_of(sizes)
    for rank, found in enumerate(run_ranks(mesh.ranks, mesh_axes, mesh)):
        place = mesh.place(rank)
        for index, name in enumerate(AXES):
            assert found[name] == [place[index], list(mesh.peers(name, rank))]


def test_ranks_refuse_a_mesh_that_does_not_fit():
    assert run_ranks(2, wrong_mesh) == [["parallel.mesh", "ring = 2"]] * 2
