"""One pass of the engine over several ranks, as a rank runs it. No pytest here."""

import torch
from engine_toys import DIVISOR, choice_of, toy_batch, toy_decoder

from longspan.attention.functional import Cpu
from longspan.attention.schemes.gather import Gather
from longspan.attention.schemes.grid import Grid
from longspan.attention.schemes.local import Local
from longspan.attention.schemes.ring import Ring
from longspan.attention.schemes.ulysses import Ulysses
from longspan.engine.run import Engine
from longspan.utils.errors import LongspanError

PLAIN = Local(kernel=Cpu())  # needs no self-test in every process
SCHEMES = {
    "gather": lambda axes: Gather(ring=axes["ring"], local=PLAIN),
    "ring": lambda axes: Ring(ring=axes["ring"], local=PLAIN),
    "ulysses": lambda axes: Ulysses(ulysses=axes["ulysses"], inner=PLAIN),
    "grid": lambda axes: Grid(ring=axes["ring"], ulysses=axes["ulysses"], local=PLAIN),
}


def one_pass(world, mesh, kind, cases):
    """Loss and gradients of each case; the code of the error where it is refused."""
    axes = world.axes(mesh)
    scheme = SCHEMES[kind](axes)
    return [_case(scheme, [axis for axis in axes.values() if axis.size > 1], *case) for case in cases]


def _case(scheme, axes, changes, spans, steering):
    decoder, batch = toy_decoder(**changes), toy_batch(spans)
    choice = choice_of(decoder, tiers=("device", "host"), **steering)
    try:
        engine = Engine(decoder, choice, tokens=batch.tokens.numel(), scheme=scheme, axes=axes)
        loss = engine.forward_backward(batch, divisor=DIVISOR)
        engine.forward_backward(batch, divisor=DIVISOR)  # a second micro-batch: sums of ranks must not be summed again
    except LongspanError as error:
        return error.code
    return [loss.float(), *(torch.zeros(()) if p.grad is None else p.grad.float() / 2 for p in decoder.parameters())]
