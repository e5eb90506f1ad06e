"""Several ranks on this machine: processes forked from one server that has torch and longspan loaded, gloo, a file
in place of ports. The first failure of a rank ends the others and is raised here with its traceback.

Functions that run on ranks belong to modules without pytest, which a rank would load anew each time.
"""

import contextlib
import multiprocessing
import os
import tempfile
import time
import traceback
from multiprocessing.connection import wait
from pathlib import Path

import torch
from torch import distributed

from longspan.parallel.dist import Launch, join

DEADLINE_SECONDS = 60.0
LOADED = ("torch", "torch.distributed", "numpy", "longspan.attention.schemes.grid")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(LOADED))


def run_ranks(ranks, function, *arguments, deadline_seconds=DEADLINE_SECONDS):
    """What `function(world, *arguments)` returns on each rank, tensors as arrays."""
    with tempfile.TemporaryDirectory() as folder:
        processes = start_ranks(ranks, function, *arguments, folder=folder, deadline_seconds=deadline_seconds)
        try:
            return collect(processes, deadline_seconds=2 * deadline_seconds)
        finally:
            end_ranks(processes)


def end_ranks(processes):
    """Nobody stays."""
    for process, pipe in processes:
        process.kill()
        process.join()
        pipe.close()


def start_ranks(ranks, function, *arguments, folder, deadline_seconds):
    """The processes and the pipes of their answers."""
    found = []
    for rank in range(ranks):
        ours, theirs = _context.Pipe(duplex=False)
        launch = Launch(rank=rank, ranks=ranks, local_rank=rank)
        process = _context.Process(
            target=_rank, args=(theirs, launch, str(Path(folder) / "store"), deadline_seconds, function, arguments)
        )
        with _without_main():
            process.start()
        theirs.close()
        found.append((process, ours))
    return found


def collect(processes, *, deadline_seconds):
    """The answers of all ranks; raises the first failure."""
    answers = {}
    rank_of = {pipe: rank for rank, (_, pipe) in enumerate(processes)}
    until = time.monotonic() + deadline_seconds
    while len(answers) < len(processes):
        ready = wait([pipe for pipe, rank in rank_of.items() if rank not in answers], until - time.monotonic())
        if not ready:
            raise TimeoutError(f"ranks {sorted(set(rank_of.values()) - answers.keys())} gave no answer")
        for pipe in ready:
            answers[rank_of[pipe]] = answer_of(pipe, rank_of[pipe])
    return [answers[rank] for rank in range(len(processes))]


def answer_of(pipe, rank):
    """One rank's answer; raises what it raised."""
    try:
        good, answer = pipe.recv()
    except EOFError:
        raise RuntimeError(f"rank {rank} ended without an answer") from None
    if not good:
        raise RuntimeError(f"rank {rank} failed:\n{answer}")
    return answer


def _rank(pipe, launch, store, deadline_seconds, function, arguments):
    torch.set_num_threads(1)
    try:
        meeting = distributed.FileStore(store, launch.ranks)
        world = join(launch, device_type="cpu", deadline_seconds=deadline_seconds, store=meeting)
        answer = plain(function(world, *arguments))
        world.leave()
        pipe.send((True, answer))
    except BaseException:  # noqa: BLE001 - whatever it was, the test has to see it
        pipe.send((False, traceback.format_exc()))
    pipe.close()
    os._exit(0)  # a rank that failed does not wait for the others


def plain(value):
    """Tensors as arrays: they travel without shared memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return value


@contextlib.contextmanager
def _without_main():
    """Children do not run pytest's own main module again."""
    import __main__

    kept = {name: getattr(__main__, name) for name in ("__file__", "__spec__") if hasattr(__main__, name)}
    try:
        for name in kept:
            setattr(__main__, name, None)
        yield
    finally:
        for name, value in kept.items():
            setattr(__main__, name, value)
