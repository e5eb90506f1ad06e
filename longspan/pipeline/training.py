"""The training phase as each rank works on it: its share of rows and weights, its passes, its part of checkpoints."""

import uuid
from collections.abc import Sequence

from longspan.batch import Batch
from longspan.data.collate import collate
from longspan.pipeline.engines import StageEngines
from longspan.pipeline.job import Job
from longspan.pipeline.memory import memory_errors
from longspan.pipeline.prepared import round_slots
from longspan.records import StepMetrics
from longspan.train.loop import train as train_decoder
from longspan.train.metrics import MetricsFile
from longspan.train.peers import Peers
from longspan.train.plan import StagePlan
from longspan.train.team import Team
from longspan.train.trackers.base import Tracking
from longspan.utils.files import read_json, write_json

FIX = "lower train.micro_batch_tokens, which one pass takes at once, or engine.device_gib, which is planned with"


def train_here(job: Job, plans: Sequence[StagePlan]) -> None:
    """These stages, from the newest checkpoint on. Raises as `longspan.train.loop.train` does."""
    rows = round_slots(job)
    engines = StageEngines(job, rows)
    if job.leads:
        write_json(job.folder.identity, job.train_inputs)
    metrics = MetricsFile(job.folder.metrics) if job.leads else None
    rank = 0 if job.world is None else job.world.launch.rank
    # Verdicts of gates are files, and do not change until this returns.
    tracking, stages, total_tokens = _tracking(job), job.round_stages, job.total_tokens

    def batches(stage: int, first_row: int, count: int) -> Batch:
        slots = [rows[stage].slot(first_row + index) for index in range(count)]
        # Ranks that would share a long row read the same slots, and take short rows of these apart.
        part, parts = plans[stage].part_of(rank, len(slots[0][0].tokens))
        return collate([row for slot in slots for row in slot[part::parts]])

    def observe(step: StepMetrics) -> None:
        assert metrics is not None, "the rank that leads speaks for all"
        metrics.write(step)
        if tracking is not None:
            tracking.observe(step)
        job.observer.step(step, step_tokens=plans[step.stage].tokens_per_step, total_tokens=total_tokens)

    def where() -> str:
        return f"recipe: stages.{stages[engines.plan.index]} (length {engines.plan.length:,})"

    try:
        with (
            memory_errors(where, fix=FIX),
            job.checkpoints(Peers(job.world)) as checkpoints,
        ):
            train_decoder(
                engines.decoder.train(),
                plans,
                settings=job.recipe.train,
                batches=batches,
                checkpoints=checkpoints,
                observe=observe,
                engine=engines,
                team=Team(stop=job.stop, weights=engines.weights, world=job.world),
            )
    finally:
        if tracking is not None:
            tracking.close()


def _tracking(job: Job) -> Tracking | None:
    recipe, folder = job.recipe, job.folder.tracking
    if recipe.tracking is None or not job.leads:
        return None
    known = folder / "id.json"  # trackers go on with a run of the same name, which another folder's may have
    if not known.exists():
        write_json(known, {"id": uuid.uuid4().hex})
    name = f"{recipe.name}-{read_json(known)['id'][:8]}"
    return Tracking(recipe.tracking, folder, name=name, recipe=recipe.plain(), warn=job.observer.warn)
