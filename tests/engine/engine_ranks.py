"""One pass of the engine over several ranks, as a rank runs it. No pytest here."""

import os
import signal
import time
from dataclasses import replace

import torch
from engine_toys import DIVISOR, adapt, choice_of, toy_batch, toy_decoder

from longspan.attention.functional import Cpu
from longspan.attention.schemes.gather import Gather
from longspan.attention.schemes.grid import Grid
from longspan.attention.schemes.local import Local
from longspan.attention.schemes.ring import Ring
from longspan.attention.schemes.ulysses import Ulysses
from longspan.engine.run import Engine
from longspan.parallel.weights import Shards, Whole
from longspan.utils.errors import LongspanError

PLAIN = Local(kernel=Cpu())  # needs no self-test in every process
SCHEMES = {
    "gather": lambda axes: Gather(ring=axes["ring"], local=PLAIN),
    "ring": lambda axes: Ring(ring=axes["ring"], local=PLAIN),
    "ulysses": lambda axes: Ulysses(ulysses=axes["ulysses"], inner=PLAIN),
    "grid": lambda axes: Grid(ring=axes["ring"], ulysses=axes["ulysses"], local=PLAIN),
}


def one_pass(world, mesh, kind, cut, cases):
    """Loss and gradients of each case, of the rows that the rank keeps; the code of the error where it is refused."""
    axes = world.axes(mesh)
    scheme = SCHEMES[kind](axes)
    return [_case(world, mesh, scheme, axes, cut, *case) for case in cases]


def _case(world, mesh, scheme, axes, cut, changes, spans, steering):
    decoder, steering = toy_decoder(**changes), dict(steering)
    if steering.pop("adapters", False):
        adapt(decoder)
    choice = choice_of(decoder, tiers=("device", "host"), **steering)
    if cut:
        weights = Shards(decoder, decoder.parts, world=world, mesh=mesh, dtype=None)
    else:
        weights = Whole(decoder, list(axes.values()))
    data_ranks = mesh.replicate * mesh.shard
    own = slice(world.launch.rank // mesh.context, None, data_ranks)  # rows in turn; micro-batches of one row
    batch = toy_batch(spans)
    rows = [
        replace(batch.changed(lambda x, row=row: x[row : row + 1]), spans=spans[row : row + 1])
        for row in range(len(spans))
    ][own]
    try:
        engine = Engine(decoder, choice, tokens=batch.tokens.numel(), scheme=scheme, weights=weights)
        if data_ranks == 1:
            loss = engine.forward_backward(batch, divisor=DIVISOR)
            engine.forward_backward(batch, divisor=DIVISOR)  # a second micro-batch: sums must not be summed again
        else:
            losses = [engine.forward_backward(row, divisor=DIVISOR / 2) for row in rows]
            loss = torch.stack(losses).sum()
    except LongspanError as error:
        return error.code
    found = {name: torch.zeros(()) if w.grad is None else w.grad / 2 for name, w in weights.kept.items()}
    return {"loss": loss.float()} | {name: (weights.first_row(name), x) for name, x in found.items()}


def stopped_in_a_layer(world, mesh, folder):
    """Rank 1 stops itself when the gradients of layer 1 are added up; the others tell where they waited."""
    with open(f"{folder}/stderr-{world.launch.rank}", "w") as file:
        os.dup2(file.fileno(), 2)
    decoder, axes = toy_decoder(), world.axes(mesh)
    weights = Shards(decoder, decoder.parts, world=world, mesh=mesh, dtype=None)
    if world.launch.rank == 1:
        reduce, first = weights.reduce, decoder.blocks[1].q.weight.shape

        def stop(total):
            if world.progress.part == "layer 1" and total.shape == first:
                time.sleep(0.5)  # some beats of the pulse
                os.kill(os.getpid(), signal.SIGSTOP)
            return reduce(total)

        weights.reduce = stop
    batch = toy_batch(((0, 31),))
    engine = Engine(decoder, choice_of(decoder, group=2), tokens=31, scheme=SCHEMES["ring"](axes), weights=weights)
    engine.forward_backward(batch, divisor=DIVISOR)
