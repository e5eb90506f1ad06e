"""A decoder and an updater after one step, and their checkpoints, for the tests of this folder."""

from pathlib import Path

import torch
from toy_training import decoder

from longspan.train.checkpoint import Progress
from longspan.train.optimizer import build_updater
from longspan.train.settings import TrainSettings


def state(seed: int = 1, *, width: int = 16):
    """A decoder and an updater that has made one step."""
    model = decoder(seed, width=width)
    updater = build_updater(model, TrainSettings())
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 0.1 * seed)
    updater.step(0.0)
    return model, updater


def save(saving, step: int, *, seed: int = 1):
    model, updater = state(seed)
    progress = Progress(step=step, stage=1, step_in_stage=step, rows_in_stage=4 * step, tokens=32 * step)
    saving.save(progress, decoder=model, updater=updater)
    return saving.latest()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())
