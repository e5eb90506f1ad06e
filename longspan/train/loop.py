"""The training loop: stages of steps, each step some micro-batches, one update and one line of metrics."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from longspan.batch import Batch
from longspan.model.decoder import Decoder
from longspan.records import StepMetrics
from longspan.train.ahead import Batches, Request, RowsAhead, to_device
from longspan.train.checkpoint import CheckpointStore, Progress
from longspan.train.optimizer import Updater, build_updater
from longspan.train.passes import Engine, Pass, plain_engine
from longspan.train.plan import StagePlan
from longspan.train.schedule import learning_rate
from longspan.train.settings import TrainSettings
from longspan.train.team import Team
from longspan.utils.errors import Interrupted, LongspanError

ALONE = Team()


def train(
    decoder: Decoder,
    stages: Sequence[StagePlan],
    *,
    settings: TrainSettings,
    batches: Batches,
    checkpoints: CheckpointStore,
    observe: Callable[[StepMetrics], None],
    engine: Engine | None = None,
    team: Team = ALONE,
) -> None:
    """Train the decoder through all stages, going on from the newest whole checkpoint if there is one.

    Trained are the weights that require a gradient. Killed at any moment and called again with the same arguments, it
    ends with the same bits as a run that was never killed: on a CPU with the same threads and versions; on a GPU it is
    equal within rounding. `batches` is called from another thread, in order. `engine` gives the pass of each stage,
    plain autograd unless told. The ranks of a `team` all call it; a step sees the same rows on any mesh, and `observe`
    hears of it on the rank that speaks for all. Between micro-batches the team is asked whether to stop: then the
    unfinished step is dropped, the state of the last finished one is saved and `Interrupted` is raised.
    Raises `StorageError`, `CheckpointError`, `ConfigError` when the optimizer cannot work on this machine, and
    `LongspanError` (`train.not-finite`) after too many skipped steps.
    """
    engine = engine or plain_engine(decoder)
    updater = build_updater(decoder, settings, team.weights)
    with contextlib.closing(updater):
        checkpoints.prepare(decoder, updater)
        progress = _resume(decoder, updater, checkpoints)
        saved_step = progress.step

        def save() -> None:
            nonlocal saved_step
            if saved_step < progress.step:
                checkpoints.save(progress, decoder=decoder, updater=updater)
                saved_step = progress.step

        with RowsAhead(batches, _requests(stages, progress, team), pin=decoder.device.type == "cuda") as rows:
            for plan in stages[progress.stage :]:
                if plan.index > progress.stage:
                    progress = replace(progress, stage=plan.index, step_in_stage=0, rows_in_stage=0)
                decoder.frequencies = plan.frequencies
                run: Pass | None = None  # a pass may hold memory: the old one goes before the new one is made
                while progress.step_in_stage < plan.steps:
                    run = run or engine(plan)
                    try:
                        metrics = _step(_Work(decoder, updater, rows, run, team), plan, progress)
                    except Interrupted:
                        save()
                        raise
                    progress = _advance(progress, plan, metrics)
                    if team.speaks:
                        observe(metrics)
                    if progress.skipped_in_a_row >= settings.max_skipped_steps:
                        raise _not_finite(progress)
                    if progress.step % settings.save_every_steps == 0:
                        save()
                save()


@dataclass(frozen=True)
class _Work:
    """What every step needs."""

    decoder: Decoder
    updater: Updater
    rows: RowsAhead
    run: Pass
    team: Team

    def polling(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, as long as no rank was asked to stop."""
        for batch in batches:
            if self.team.stopped():
                raise Interrupted("asked to stop; the state of the last finished step is saved")
            yield batch


def _resume(decoder: Decoder, updater: Updater, checkpoints: CheckpointStore) -> Progress:
    checkpoint = checkpoints.latest()
    if checkpoint is None:
        return Progress()
    checkpoints.warn_of_other_bits(checkpoint, decoder)
    checkpoint.restore(decoder, updater)
    checkpoints.retire()  # a kill may have come between the last save and this
    return checkpoint.progress


def _step(work: _Work, plan: StagePlan, progress: Progress) -> StepMetrics:
    """One optimizer step on the next `rows_per_step` rows; weights change only if loss and gradient are finite."""
    began = time.monotonic()
    rate = learning_rate(progress.step_in_stage, plan)
    micro_batches = list(work.polling(work.rows.step()))
    length = micro_batches[0].tokens.shape[1]  # of all rows of the step, on every rank
    # Known before the first backward pass: every target of the step weighs the same, however rows are split.
    own = sum(float(batch.weights.sum(dtype=torch.float64)) for batch in micro_batches)
    divisor = work.team.total(own, plan.mesh_for(length))
    work.updater.zero()
    found = _Outcome(math.nan, math.nan, "skipped")
    if divisor > 0:
        update = _update_inside if work.updater.inside_pass else _update_after
        found = update(work, micro_batches, divisor=divisor, rate=rate)
    return StepMetrics(
        step=progress.step + 1,
        stage=plan.index,
        length=length,
        loss=found.loss,
        gradient_norm=found.norm,
        learning_rate=rate,
        tokens=progress.tokens + plan.tokens_per_step,
        targets=divisor,
        seconds=time.monotonic() - began,
        event=found.event,
    )


@dataclass(frozen=True)
class _Outcome:
    loss: float
    norm: float
    event: Literal["step", "partial", "skipped"]


def _update_after(work: _Work, micro_batches: Sequence[Batch], *, divisor: float, rate: float) -> _Outcome:
    """Gradients of all micro-batches are added up, then weights change, if all are finite."""
    total = torch.zeros((), dtype=torch.float64, device=work.decoder.device)
    for batch in work.polling(micro_batches):
        total += work.run(to_device(batch, work.decoder.device), divisor=divisor)
    loss = float(total) / divisor
    norm = work.updater.step(rate) if math.isfinite(loss) else math.nan
    return _Outcome(loss, norm, "step" if math.isfinite(norm) else "skipped")


def _update_inside(work: _Work, micro_batches: Sequence[Batch], *, divisor: float, rate: float) -> _Outcome:
    """Weights change within the backward pass of the only micro-batch, group by group, once its loss is finite."""
    (batch,) = work.polling(micro_batches)
    inside = work.updater.inside(rate)
    loss = float(work.run(to_device(batch, work.decoder.device), divisor=divisor, on_gradients=inside)) / divisor
    assert inside.complete == math.isfinite(loss), "the engine hands over every gradient, or none when the loss is bad"
    if not inside.updated:
        return _Outcome(loss, inside.norm, "skipped")
    return _Outcome(loss, inside.norm, "partial" if inside.skipped else "step")


def _requests(stages: Sequence[StagePlan], progress: Progress, team: Team) -> Iterator[list[Request]]:
    """What each step that is left reads on this rank, in micro-batches."""
    for plan in stages[progress.stage :]:
        here = plan.index == progress.stage
        first = (progress.rows_in_stage if here else 0) + team.first_row(plan)
        for _ in range(progress.step_in_stage if here else 0, plan.steps):
            end = first + plan.rows_per_rank
            rows = range(first, end, plan.micro_rows)
            yield [(plan.index, row, min(plan.micro_rows, end - row)) for row in rows]
            first += plan.rows_per_step


def _advance(progress: Progress, plan: StagePlan, metrics: StepMetrics) -> Progress:
    return Progress(
        step=metrics.step,
        stage=plan.index,
        step_in_stage=progress.step_in_stage + 1,
        rows_in_stage=progress.rows_in_stage + plan.rows_per_step,
        tokens=metrics.tokens,
        skipped_in_a_row=0 if metrics.event == "step" else progress.skipped_in_a_row + 1,
    )


def _not_finite(progress: Progress) -> LongspanError:
    return LongspanError(
        "train.not-finite",
        f"loss or gradient was not finite in {progress.skipped_in_a_row} steps in a row, up to step {progress.step}",
        where=f"stage {progress.stage}, step {progress.step_in_stage} of the stage",
        fix="lower the learning rate, look at the data of these steps, or allow more with train.max_skipped_steps: "
        "the same command then goes on from the last checkpoint, which is whole",
    )
