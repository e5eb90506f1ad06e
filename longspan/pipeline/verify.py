"""`longspan verify`: the meshes of a recipe on a slice of its own model and data, against one rank."""

import copy
from collections.abc import Sequence

from longspan.data.collate import collate
from longspan.data.curricula.base import Slots
from longspan.engine.anchors import anchor_keys
from longspan.engine.settings import EngineChoice, Tier
from longspan.model.decoder import Decoder
from longspan.parallel.mesh import AXES, Mesh
from longspan.pipeline.job import Job
from longspan.pipeline.meshes import scheme_of
from longspan.pipeline.parity import compare_mesh, odd_batch
from longspan.train.ahead import to_device
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
    for plan in {plan.mesh: plan for plan in job.plans}.values():
        part.frequencies = plan.frequencies
        batch = collate([row for number in range(plan.mesh.data) for row in rows[plan.index].slot(number)])
        verdict = compare_mesh(
            lambda: copy.deepcopy(part),
            odd_batch(to_device(batch.changed(lambda x: x[:, :TOKENS].contiguous()), world.device)),
            world=world,
            mesh=plan.mesh,
            scheme=scheme_of(plan.mesh, world, choice),
            choice=choice,
        )
        differ |= not verdict.ok
        tables += [f"mesh {_named(plan.mesh)}, {found.table()}" for found in verdict.comparisons]
    if differ:
        raise LongspanError(
            "verify.differs",
            "a mesh does not compute what one rank computes\n" + "\n".join(tables),
            where="recipe: parallel.mesh",
            fix="take another mesh, and report this with its table",
        )
    return tuple(tables)


def _slice(job: Job) -> Decoder:
    """The lowest layers of the model, with embedding and head, in float32."""
    decoder = job.base()
    count = min(LAYERS, decoder.shape.layers)
    decoder.blocks = decoder.blocks[:count]
    decoder.shape = decoder.shape.first_layers(count)
    return decoder.float()


def _named(mesh: Mesh) -> str:
    return " x ".join(f"{name} {size}" for name, size in zip(AXES, mesh.sizes, strict=True) if size > 1)
