"""Curricula over ranks: with rows apart, then tokens of a row apart, two ranks see what one sees."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan import cli
from longspan.parallel.mesh import Mesh
from longspan.pipeline.job import Job
from longspan.pipeline.observer import SILENT, never
from longspan.pipeline.recipe import Recipe
from longspan.rope.frequencies import Frequencies
from longspan.train.plan import StagePlan


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["length"], line["loss"]) for line in lines]


def test_buckets_and_ladder_on_two_ranks(micro: Path) -> None:
    words = (micro.parent / "texts" / "page-0.txt").read_text().split()
    lines = [json.dumps({"text": " ".join(words[at : at + 20])}) for at in range(0, 1_000, 20)]
    (micro.parent / "texts" / "lines.jsonl").write_text("\n".join(lines))
    text = micro.read_text()
    text = text.replace(
        'rope = { kind = "default" }',
        'rope = { kind = "default" }\nmix = [{ share = 1.0, documents = ["lines*"] }]\n'
        'curriculum = { kind = "buckets", shortest = 16, cycles = 2 }\n'
        'canaries = { groups = ["near"], repeats = [1], pairs = 2, tokens = 3 }',
    )
    mix = 'mix = [{ share = 0.5 }, { share = 0.5, probe = { kind = "key_value" }, items = 1 }]'
    assert mix in text
    text = text.replace(mix, 'curriculum = { kind = "ladder", start = 8 }')
    micro.write_text(text)
    assert cli.main(["train", str(micro), "--output", str(micro.with_name("alone"))]) == cli.OK
    spread = micro.with_name("spread.toml")
    ladder = 'curriculum = { kind = "ladder", start = 8 }'
    spread.write_text(text.replace(ladder, f"{ladder}\nmesh = {{ ulysses = 2 }}") + "\n[parallel]\nranks = 2\n")
    done = subprocess.run(
        [sys.executable, "-m", "longspan", "train", str(spread)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    here, alone = losses(micro.with_name("run")), losses(micro.with_name("alone"))
    assert [length for length, _ in here] == [length for length, _ in alone]
    assert len({length for length, _ in here}) > 2
    assert [loss for _, loss in here] == pytest.approx([loss for _, loss in alone], rel=1e-5)


def bucketed(micro: Path, *, ranks: int, mesh: str, length: int = 64) -> Path:
    """One stage of buckets, whose long rows ranks share in the recipe that comes back and not in `micro`."""
    words = (micro.parent / "texts" / "page-0.txt").read_text().split()
    lines = [json.dumps({"text": " ".join(words[at : at + 20])}) for at in range(0, 1_000, 20)]
    (micro.parent / "texts" / "lines.jsonl").write_text("\n".join(lines))
    text = micro.read_text()
    head, _, tail = text.partition("[[stages]]")
    stage = (
        f"[[stages]]\nlength = {length}\ntokens = 2048\nbatch_tokens = 128\nlearning_rate = 1e-3\n"
        'rope = { kind = "default" }\nmix = [{ share = 1.0, documents = ["lines*"] }]\n'
        'curriculum = { kind = "buckets", shortest = 16, cycles = 2 }\n'
    )
    rest = "[train]" + tail.split("[train]")[1]
    heads = head.replace("heads = 2\nkv_heads = 1", "heads = 4\nkv_heads = 2").replace("width = 16", "width = 32")
    micro.write_text(heads + stage + "\n" + rest)
    spread = micro.with_name("spread.toml")
    spread.write_text(heads + stage + f"mesh = {mesh}\n\n" + rest + f"\n[parallel]\nranks = {ranks}\n")
    return spread


@pytest.mark.parametrize(
    ("ranks", "mesh", "meshes"),
    [
        (2, "{ ulysses = 2 }", {64: (1, 2), 32: (2, 1), 16: (2, 1)}),
        pytest.param(4, "{ ring = 2, ulysses = 2 }", {64: (1, 4), 32: (2, 2), 16: (4, 1)}, marks=pytest.mark.slow),
    ],
)
def test_short_rows_leave_the_mesh_of_long_ones(
    micro: Path, ranks: int, mesh: str, meshes: dict[int, tuple[int, int]]
) -> None:
    """Short rows go to ranks of their own, long ones are shared; losses and weights are those of one rank."""
    path = bucketed(micro, ranks=ranks, mesh=mesh)
    assert cli.main(["train", str(micro), "--output", str(micro.with_name("alone"))]) == cli.OK
    done = subprocess.run(
        [sys.executable, "-m", "longspan", "train", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    here, alone = losses(micro.with_name("run")), losses(micro.with_name("alone"))
    assert [length for length, _ in here] == [length for length, _ in alone]
    assert {length for length, _ in here} == set(meshes)
    assert [loss for _, loss in here] == pytest.approx([loss for _, loss in alone], rel=2e-5)
    with Job.opened(Recipe.read(micro), observer=SILENT, stop=never) as job:
        plan = replace(job.plans[0], mesh=Recipe.read(path).stages[0].mesh.mesh)  # type: ignore[union-attr]
    assert {size: (plan.mesh_for(size).data, plan.mesh_for(size).context) for size in meshes} == meshes


@pytest.mark.slow
def test_the_meshes_of_short_rows_are_verified_too(micro: Path) -> None:
    path = bucketed(micro, ranks=4, mesh="{ ring = 2, ulysses = 2 }")
    checked = subprocess.run(
        [sys.executable, "-m", "longspan", "verify", str(path), "--json"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["compared"] == 6, "three meshes, each with and without a rank that has no target"
    assert "mesh shard 2 x ulysses 2, three documents: equal" in checked.stderr
    assert "mesh shard 4, one rank without a target: equal" in checked.stderr


@given(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (3, 4), (1, 8)]), st.integers(1, 3), st.integers(0, 4))
def test_ranks_of_one_row_divide_the_slots_among_them(sizes: tuple[int, int], shard: int, halvings: int) -> None:
    """Over all ranks, each short row of a step is worked on by exactly the ranks of one context."""
    ring, ulysses = sizes
    mesh = Mesh(shard=shard, ring=ring, ulysses=ulysses)
    plan, row_tokens = _plan(mesh), 64 >> halvings
    seen: Counter[tuple[int, int]] = Counter()
    for rank in range(mesh.ranks):
        first = rank // mesh.context * plan.rows_per_rank
        part, parts = plan.part_of(rank, row_tokens)
        for slot in range(first, first + plan.rows_per_rank):
            seen.update((slot, row) for row in range(64 // row_tokens)[part::parts])
    assert set(seen) == {(slot, row) for slot in range(plan.rows_per_step) for row in range(64 // row_tokens)}
    assert set(seen.values()) == {plan.mesh_for(row_tokens).context}


def _plan(mesh: Mesh) -> StagePlan:
    return StagePlan(
        index=0,
        length=64,
        steps=1,
        rows_per_step=2 * mesh.data,
        micro_rows=1,
        learning_rate=1e-3,
        final_share=0.1,
        warmup_steps=1,
        frequencies=Frequencies(theta=1e4, factors=(1.0,) * 4, attention_factor=1.0, length=64, trained_length=64),
        mesh=mesh,
    )
