"""Starting the ranks of this machine: torchrun's elastic agent, around the same command that the user typed."""

import dataclasses
import logging
import math
import signal
import sys
from collections.abc import Callable, Sequence

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from longspan.parallel.dist import launched
from longspan.pipeline.recipe import Recipe
from longspan.utils.errors import ConfigError, Interrupted, LongspanError

# How long ranks that were asked to stop may take to save, and which signals ask the launcher; Ctrl-C asks them itself.
ASKED_TO_STOP: dict[str, Callable[[float], object]] = {
    "shutdown_timeout": math.ceil,
    "signals_to_handle": lambda _: "SIGTERM,SIGHUP",
}


def local_ranks(recipe: Recipe) -> int:
    """How many ranks a recipe asks for on this machine: those named, or one a GPU. Raises `parallel.ranks`."""
    asked = recipe.parallel.ranks
    gpus = 0 if recipe.device == "cpu" else torch.cuda.device_count()
    if asked == "auto":
        return max(1, gpus)
    if gpus and asked > gpus:
        raise ConfigError(
            "parallel.ranks",
            f"{asked} ranks for {gpus} GPUs: each rank needs one of its own",
            where="recipe: parallel.ranks",
            fix=f'ranks = {gpus}, or leave it "auto"',
        )
    return asked


def ranks_to_start(recipe: Recipe) -> int:
    """How many ranks this process has to start; 0 if it is one itself, or needs no others."""
    ranks = local_ranks(recipe) if launched() is None else 1
    return ranks if ranks > 1 else 0


def launch(words: Sequence[str], *, ranks: int, deadline_seconds: float) -> int:
    """Run `longspan` with these words on so many ranks of this machine; the exit status of the first that failed.

    Ctrl-C and SIGTERM reach the ranks, which save and end. No rank is started twice: the same command goes on.
    Raises `parallel.killed` when a signal ended a rank.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # ranks tell their errors themselves
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id="longspan",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    for key, value in ASKED_TO_STOP.items():
        if key in {field.name for field in dataclasses.fields(config)}:  # newer releases of torch have them
            setattr(config, key, value(deadline_seconds))
    before = signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends it to the ranks as well
    try:
        elastic_launch(config, sys.executable)("-m", "longspan", *words)
    except ChildFailedError as error:
        return _status(error)
    except SignalException as stop:
        raise Interrupted("all ranks have saved what they did") from stop
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def _status(error: ChildFailedError) -> int:
    rank, failure = error.get_first_failure()
    if failure.exitcode >= 0:
        return int(failure.exitcode)
    name = signal.Signals(-failure.exitcode).name
    raise LongspanError(
        "parallel.killed",
        f"rank {rank} was ended by {name}",
        where=f"process {failure.pid}",
        fix="the same command goes on from the last checkpoint; the system log knows if host memory was short",
    )
