"""The ranks of a run, what a recipe's meshes are once they are counted, and the attention scheme of each mesh."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from longspan.attention.functional import Kernel
from longspan.attention.schemes.base import Scheme
from longspan.attention.schemes.grid import ACROSS, Grid
from longspan.attention.schemes.local import Local
from longspan.attention.schemes.ulysses import Ulysses
from longspan.engine import pointwise
from longspan.engine.settings import EngineChoice
from longspan.parallel.dist import World, join, launched
from longspan.parallel.mesh import Mesh
from longspan.pipeline.machine import probe
from longspan.pipeline.recipe import Recipe, Stage
from longspan.pipeline.workloads import workload
from longspan.plan.choose import choose
from longspan.plan.machine import Machine
from longspan.plan.meshes import choose_mesh
from longspan.shape import ModelShape
from longspan.utils.errors import ConfigError, LongspanError


@contextmanager
def ranks_of(recipe: Recipe) -> Iterator[World | None]:
    """The ranks that torchrun started, as one of them; None for a process alone. A rank that fails just ends."""
    launch = launched()
    if launch is None or launch.ranks == 1:
        yield None
        return
    gpu = recipe.device != "cpu" and torch.cuda.is_available()
    world = join(launch, device_type="cuda" if gpu else "cpu", deadline_seconds=recipe.parallel.deadline_seconds)
    yield world
    world.leave()


def meshes(recipe: Recipe, *, ranks: int, automatic: Callable[[Stage], Mesh]) -> tuple[Mesh, ...]:
    """The mesh of every stage; `automatic` finds the one of a stage for which none is named.

    Raises `ConfigError` (`parallel.mesh`) for one that has not as many places as there are ranks, or when stages want
    the weights cut in different ways.
    """
    found = []
    for index, stage in enumerate(recipe.stages):
        asked = stage.mesh or recipe.parallel.mesh
        try:
            mesh = automatic(stage) if asked == "auto" else asked.mesh
            mesh.check(ranks)
        except ConfigError as error:
            error.where = f"recipe: stages.{index}.mesh" if stage.mesh else f"recipe: parallel.mesh, stage {index}"
            raise
        found.append(mesh)
    copies = {mesh.replicate for mesh in found}
    if len(copies) > 1:
        raise ConfigError(
            "parallel.mesh",
            f"stages keep {' and '.join(map(str, sorted(copies)))} copies of the weights, which stay cut as they are",
            where="recipe: stages",
            fix="give every mesh the same replicate",
        )
    return tuple(found)


def machine_of(world: World | None, device: torch.device, *, folder: Path) -> Machine:
    """What this rank may take of its machine."""
    machine = probe(device, folder=folder)
    return machine if world is None else machine.part(world.launch.local_ranks)


def automatic(
    recipe: Recipe,
    shape: ModelShape,
    machine: Machine,
    stage: Stage,
    *,
    launch: tuple[int, int],
    device: torch.device,
) -> Mesh:
    """The mesh of a stage that names none: rows apart while a row's share fits a rank, as the planner sees it.

    `launch` counts ranks in all, and those of one node.
    """
    ranks, ranks_per_node = launch

    def fits(local_tokens: int) -> bool:
        context = -(-stage.length // local_tokens)
        ulysses = math.gcd(context, shape.heads)
        mesh = Mesh(shard=max(1, ranks // context), ring=context // ulysses, ulysses=ulysses)
        work = workload(recipe, shape, device, rows=1, length=stage.length, mesh=mesh)
        try:
            choose(work, recipe.engine, machine)
        except LongspanError:
            return False
        return True

    return choose_mesh(
        ranks=ranks,
        ranks_per_node=ranks_per_node,
        rows_per_step=stage.rows_per_step,
        length=stage.length,
        heads=shape.heads,
        windows=shape.windows,
        fits=fits,
    )


def scheme_of(mesh: Mesh, world: World, choice: EngineChoice, *, kernel: Kernel | None = None) -> Scheme:
    """How the ranks that share a row attend together. Every rank calls this. `kernel` forces one for everything."""
    axes, local = world.axes(mesh), Local(kernel=kernel, merge=pointwise.merge_)
    ring, ulysses = axes["ring"], axes["ulysses"]
    if mesh.ulysses == 1:
        return ACROSS[mesh.across](ring=ring, local=local) if mesh.ring > 1 else local
    widths = {"kv_width": choice.kv_width, "query_width": choice.query_width}
    if mesh.ring == 1:
        return Ulysses(ulysses=ulysses, inner=local, **widths)
    return Grid(ring=ring, ulysses=ulysses, across=mesh.across, local=local, **widths)
