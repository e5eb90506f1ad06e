"""The mesh that is chosen: always whole, even and within what a scheme can do; refusals say what would help."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longspan.parallel.mesh import Mesh
from longspan.plan.meshes import choose_mesh
from longspan.utils.errors import ConfigError


def choose(**changes: object) -> Mesh:
    """Two nodes of eight, rows of 128K of Llama-3-8B, 16 rows a step, 40K tokens on a rank."""
    given = {
        "ranks": 16,
        "ranks_per_node": 8,
        "rows_per_step": 16,
        "length": 131_072,
        "heads": 32,
        "fits": lambda tokens: tokens <= 40_000,
    }
    return choose_mesh(**(given | changes))


def at_most(tokens: int) -> object:
    return lambda local: local <= tokens


@pytest.mark.parametrize(
    ("changes", "mesh"),
    [
        ({}, Mesh(shard=4, ulysses=4)),  # 32K tokens on each of four
        ({"length": 32_768}, Mesh(shard=16)),  # rows fit, and there are enough
        ({"length": 32_768, "rows_per_step": 4}, Mesh(shard=4, ulysses=4)),  # they fit, and there are too few
        ({"length": 32_768, "rows_per_step": 1}, Mesh(ring=2, ulysses=8)),
        ({"length": 524_288}, Mesh(ring=2, ulysses=8)),
        ({"length": 524_288, "ranks": 64, "rows_per_step": 4}, Mesh(shard=4, ring=2, ulysses=8)),
        ({"length": 524_288, "heads": 28}, Mesh(ring=4, ulysses=4)),
        ({"length": 524_288, "heads": 25}, Mesh(ring=16)),
        ({"length": 524_288, "windows": (None, 4096)}, Mesh(ring=2, ulysses=8, across="gather")),  # no ring does it
        ({"length": 524_288, "windows": (None, 1_000_000)}, Mesh(ring=2, ulysses=8)),  # hides nothing
        (
            {"length": 524_288, "ranks": 12, "ranks_per_node": 6, "heads": 24, "fits": at_most(60_000)},
            Mesh(ring=2, ulysses=6),
        ),
        ({"ranks": 1, "fits": at_most(131_072)}, Mesh()),
        ({"length": 17, "rows_per_step": 3, "ranks": 6, "ranks_per_node": 6}, Mesh(shard=3, ulysses=2)),
    ],
)
def test_ranks_go_to_rows_first(changes: dict[str, object], mesh: Mesh) -> None:
    assert choose(**changes) == mesh


@pytest.mark.parametrize(
    ("changes", "what", "fix"),
    [
        (
            {"length": 1_000_000},
            "a row of 1,000,000 tokens does not fit: on 16 ranks each would hold 62,500",
            "32 ranks",
        ),
        ({"fits": at_most(0)}, "does not fit", "shorter rows, LoRA"),
        (
            {"length": 8, "rows_per_step": 1, "ranks": 5, "ranks_per_node": 5},
            "rows of 8 tokens are too short to be shared by 5 ranks",
            "4 ranks; or a step of a multiple of 5 rows",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(changes: dict[str, object], what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        choose(**changes)
    assert error.value.code == "parallel.auto"
    assert what in error.value.what
    assert error.value.fix.startswith(fix)


@given(
    nodes=st.integers(1, 9),
    node=st.integers(1, 8),
    rows=st.integers(1, 48),
    length=st.integers(1, 3000),
    heads=st.integers(1, 64),
    window=st.sampled_from([None, 1, 100]),
    most=st.integers(0, 3000),
)
@example(nodes=8, node=8, rows=1, length=3000, heads=64, window=None, most=47)
def test_every_mesh_is_whole_and_even(
    *, nodes: int, node: int, rows: int, length: int, heads: int, window: int | None, most: int
) -> None:
    """And no mesh with more data ranks would do, found by trying all of them."""
    ranks = nodes * node

    def possible(context: int) -> bool:
        shared = context == 1 or length >= 2 * context
        return shared and -(-length // context) <= most

    degrees = [c for c in range(1, ranks + 1) if ranks % c == 0 and rows % (ranks // c) == 0 and possible(c)]
    arguments = {"ranks": ranks, "ranks_per_node": node, "rows_per_step": rows, "length": length, "heads": heads}
    if not degrees:
        with pytest.raises(ConfigError):
            choose_mesh(**arguments, windows=(window,), fits=at_most(most))
        return
    mesh = choose_mesh(**arguments, windows=(window,), fits=at_most(most))
    mesh.check(ranks)
    assert mesh.context == degrees[0]
    assert mesh.replicate == 1
    assert heads % mesh.ulysses == 0
    assert rows % mesh.shard == 0
    if window is not None and window < length:
        assert mesh.ring == 1 or mesh.across == "gather"
    for rank in range(ranks):
        assert len({peer // node for peer in mesh.peers("ulysses", rank)}) == 1, "a group inside one node"
    larger = [a for a in range(mesh.ulysses + 1, mesh.context + 1) if mesh.context % a == heads % a == node % a == 0]
    assert not larger, "as far as heads and node allow"
