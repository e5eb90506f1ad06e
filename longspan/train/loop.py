"""The training loop: stages of steps, each step some micro-batches, one update and one line of metrics."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from longspan.batch import Batch
from longspan.engine.step import forward_backward
from longspan.model.decoder import Decoder
from longspan.records import StepMetrics
from longspan.train.checkpoint import CheckpointStore, Progress
from longspan.train.optimizer import build_optimizer
from longspan.train.plan import StagePlan
from longspan.train.schedule import learning_rate
from longspan.train.settings import TrainSettings
from longspan.utils.errors import Interrupted, LongspanError

Batches = Callable[[int, int, int], Batch]  # (stage, first row of the stage, rows)


def train(
    decoder: Decoder,
    stages: Sequence[StagePlan],
    *,
    settings: TrainSettings,
    batches: Batches,
    checkpoints: CheckpointStore,
    observe: Callable[[StepMetrics], None],
    stop: Callable[[], bool],
) -> None:
    """Train the decoder through all stages, going on from the newest whole checkpoint if there is one.

    Killed at any moment and called again with the same arguments, it ends with the same bits as a run that was
    never killed: on a CPU with the same threads and versions; on a GPU it is equal within rounding. `stop` is asked
    between micro-batches: once it is true the unfinished step is dropped, the state of the last finished one is saved
    and `Interrupted` is raised.
    Raises `StorageError`, `CheckpointError`, and `LongspanError` (`train.not-finite`) after too many skipped steps.
    """
    optimizer = build_optimizer(decoder, settings)
    checkpoints.prepare(decoder, optimizer)
    progress = _resume(decoder, optimizer, checkpoints)
    saved_step = progress.step

    def save() -> None:
        nonlocal saved_step
        if saved_step < progress.step:
            checkpoints.save(progress, decoder=decoder, optimizer=optimizer)
            saved_step = progress.step

    for plan in stages[progress.stage :]:
        if plan.index > progress.stage:
            progress = replace(progress, stage=plan.index, step_in_stage=0, rows_in_stage=0)
        decoder.frequencies = plan.frequencies
        while progress.step_in_stage < plan.steps:
            try:
                metrics = _step(decoder, optimizer, plan, progress, settings=settings, batches=batches, stop=stop)
            except Interrupted:
                save()
                raise
            progress = _advance(progress, plan, metrics)
            observe(metrics)
            if progress.skipped_in_a_row >= settings.max_skipped_steps:
                raise _not_finite(progress)
            if progress.step % settings.save_every_steps == 0:
                save()
        save()
    optimizer.zero_grad()  # the gradients' memory is free for what comes after training


def _resume(decoder: Decoder, optimizer: torch.optim.AdamW, checkpoints: CheckpointStore) -> Progress:
    checkpoint = checkpoints.latest()
    if checkpoint is None:
        return Progress()
    checkpoints.warn_of_other_bits(checkpoint, decoder)
    checkpoint.restore(decoder, optimizer)
    checkpoints.retire()  # a kill may have come between the last save and this
    return checkpoint.progress


def _step(
    decoder: Decoder,
    optimizer: torch.optim.AdamW,
    plan: StagePlan,
    progress: Progress,
    *,
    settings: TrainSettings,
    batches: Batches,
    stop: Callable[[], bool],
) -> StepMetrics:
    """One optimizer step on the next `rows_per_step` rows; weights change only if loss and gradient are finite."""
    began = time.monotonic()
    rate = learning_rate(progress.step_in_stage, plan)
    micro_batches = list(_polling(_micro_batches(batches, plan, progress), stop))
    # Known before the first backward pass: every target of the step weighs the same, however rows are split.
    divisor = sum(float(batch.weights.sum(dtype=torch.float64)) for batch in micro_batches)
    optimizer.zero_grad()
    loss, norm = math.nan, math.nan
    if divisor > 0:
        total = torch.zeros((), dtype=torch.float64, device=decoder.device)
        for batch in _polling(micro_batches, stop):
            total += forward_backward(decoder, batch.to(decoder.device), divisor=divisor)
        loss = float(total) / divisor
        norm = float(torch.nn.utils.clip_grad_norm_(decoder.parameters(), settings.clip_norm))
    finite = math.isfinite(loss) and math.isfinite(norm)
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return StepMetrics(
        step=progress.step + 1,
        stage=plan.index,
        length=plan.length,
        loss=loss,
        gradient_norm=norm,
        learning_rate=rate,
        tokens=progress.tokens + plan.tokens_per_step,
        targets=divisor,
        seconds=time.monotonic() - began,
        event="step" if finite else "skipped",
    )


def _micro_batches(batches: Batches, plan: StagePlan, progress: Progress) -> Iterator[Batch]:
    first = progress.rows_in_stage
    end = first + plan.rows_per_step
    for row in range(first, end, plan.micro_rows):
        yield batches(plan.index, row, min(plan.micro_rows, end - row))


def _polling(batches: Iterable[Batch], stop: Callable[[], bool]) -> Iterator[Batch]:
    for batch in batches:
        if stop():
            raise Interrupted("asked to stop; the state of the last finished step is saved")
        yield batch


def _advance(progress: Progress, plan: StagePlan, metrics: StepMetrics) -> Progress:
    return Progress(
        step=metrics.step,
        stage=plan.index,
        step_in_stage=progress.step_in_stage + 1,
        rows_in_stage=progress.rows_in_stage + plan.rows_per_step,
        tokens=metrics.tokens,
        skipped_in_a_row=progress.skipped_in_a_row + 1 if metrics.event == "skipped" else 0,
    )


def _not_finite(progress: Progress) -> LongspanError:
    return LongspanError(
        "train.not-finite",
        f"loss or gradient was not finite in {progress.skipped_in_a_row} steps in a row, up to step {progress.step}",
        where=f"stage {progress.stage}, step {progress.step_in_stage} of the stage",
        fix="lower the learning rate, look at the data of these steps, or allow more with train.max_skipped_steps: "
        "the same command then goes on from the last checkpoint, which is whole",
    )
