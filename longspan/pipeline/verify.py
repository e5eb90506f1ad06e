"""`longspan verify`: the meshes of a recipe on a slice of its own model and data, against one rank."""

import copy
import itertools
from collections.abc import Sequence

from longspan.data.collate import collate
from longspan.data.curricula.base import Slots
from longspan.data.rows import Row
from longspan.engine.anchors import anchor_keys
from longspan.engine.settings import EngineChoice, Tier
from longspan.model.decoder import Decoder
from longspan.parallel.mesh import Mesh
from longspan.pipeline.job import Job
from longspan.pipeline.meshes import scheme_of
from longspan.pipeline.parity import compare_mesh, odd_batch
from longspan.train.ahead import to_device
from longspan.train.plan import StagePlan
from longspan.utils.errors import ConfigError, LongspanError

LAYERS, TOKENS, SEGMENT = 3, 4096, 2  # a small slice, with layers that are kept and layers that are rebuilt


def verify_here(job: Job, rows: Sequence[Slots]) -> tuple[str, ...]:
    """Compare every mesh of the recipe once; the tables come back on the rank that leads.

    Raises `ConfigError` (`verify.one-rank`) when there is one rank, `LongspanError` (`verify.differs`) with the
    tables when a mesh does not compute what one rank computes.
    """
    world = job.world
    if world is None:
        raise ConfigError(
            "verify.one-rank",
            "there is one rank, and nothing to compare it with",
            where="recipe: parallel.ranks",
            fix="name the ranks that training will have, or start this with torchrun",
        )
    part = _slice(job)
    keys = anchor_keys(part.shape.layers, keep="attention", segment=SEGMENT)
    on_device: Tier = "device"
    choice = EngineChoice(segment=SEGMENT, anchors=(on_device,) * len(keys), group=part.shape.kv_heads)
    tables, differ = [], False
    for mesh, (plan, first) in _meshes(job, rows).items():
        part.frequencies = plan.frequencies
        batch = collate(_rows(rows[plan.index], plan, first, count=mesh.data))
        verdict = compare_mesh(
            lambda: copy.deepcopy(part),
            odd_batch(to_device(batch.changed(lambda x: x[:, :TOKENS].contiguous()), world.device)),
            world=world,
            mesh=mesh,
            scheme=scheme_of(mesh, world, choice),
            choice=choice,
        )
        differ |= not verdict.ok
        tables += [f"mesh {mesh}, {found.table()}" for found in verdict.comparisons]
    if differ:
        raise LongspanError(
            "verify.differs",
            "a mesh does not compute what one rank computes\n" + "\n".join(tables),
            where="recipe: parallel.mesh",
            fix="take another mesh, and report this with its table",
        )
    return tuple(tables)


def _meshes(job: Job, rows: Sequence[Slots]) -> dict[Mesh, tuple[StagePlan, int]]:
    """Every mesh of the recipe, those of short rows included, with a stage that has it and the first slot under it."""
    found: dict[Mesh, tuple[StagePlan, int]] = {}
    for plan, slots in zip(job.plans, rows, strict=True):
        for row_tokens, first in slots.first_slots().items():
            found.setdefault(plan.mesh_for(row_tokens), (plan, first))
    return found


def _rows(slots: Slots, plan: StagePlan, first: int, *, count: int) -> list[Row]:
    """The first rows of the step that begins with this slot."""
    step = range(first, first + plan.rows_per_step)
    return list(itertools.islice((row for number in step for row in slots.slot(number)), count))


def _slice(job: Job) -> Decoder:
    """The lowest layers of the model, with embedding and head, in float32."""
    decoder = job.base()
    count = min(LAYERS, decoder.shape.layers)
    decoder.blocks = decoder.blocks[:count]
    decoder.shape = decoder.shape.first_layers(count)
    return decoder.float()
