"""How long a step will take: operations over rates, and what copies cannot hide behind them.

The rates are shares of the device's dense peak as measured on one H200 (docs/LOG.md): they rank choices, and promise
nothing.
"""

from dataclasses import dataclass

from longspan.engine.settings import EngineChoice
from longspan.plan.exchanges import Exposed
from longspan.plan.flops import (
    ATTENTION_BACKWARD,
    attention_forward_flops,
    hardware_flops,
    linear_forward_flops,
    repeated_attention_flops,
)
from longspan.plan.machine import Machine
from longspan.plan.memory import predict
from longspan.plan.weights import block_parameters
from longspan.plan.workload import Workload

# Of the peak, sustained at the power limit; attention from a head dim on.
LINEAR_SHARE, ATTENTION_SHARES = 0.65, {128: 0.55, 0: 0.44}
NARROW = 0.94  # of these rates, for one query head on a key head where there are more
FLOPS_PER_BYTE = 250.0  # the peak over the rate of the device's memory
UNKNOWN_PEAK, CPU_PEAK = 50e12, 0.1e12
READS = 2  # in the backward pass x, o and the gradient are each read twice


def attention_share(head_dim: int) -> float:
    """Share of the peak that attention reaches."""
    return next(share for dim, share in ATTENTION_SHARES.items() if dim <= head_dim)


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Where the time of one forward and backward pass goes."""

    linear: float
    attention: float
    sums: float  # adding every tile's weight gradients to the block's
    copies: float  # to and from other tiers, as far as the work does not hide them
    exchanges: float = 0.0  # with other ranks, likewise

    @property
    def total(self) -> float:
        """All of it."""
        return self.linear + self.attention + self.sums + self.copies + self.exchanges


def predict_seconds(work: Workload, choice: EngineChoice, machine: Machine) -> Seconds:
    """The time of one forward and backward pass on a machine. Ranks that share rows have equal shares of the work."""
    shape, lengths, ranks = work.shape, work.document_lengths, work.mesh.context
    peak = machine.peak_flops or (CPU_PEAK if machine.shared else UNKNOWN_PEAK)
    forward_attention = attention_forward_flops(shape, lengths) / ranks
    attention = (1 + ATTENTION_BACKWARD) * forward_attention + repeated_attention_flops(shape, lengths, choice) / ranks
    linear = hardware_flops(shape, lengths, choice, adapters=work.adapters) / ranks - attention
    forward = linear_forward_flops(shape, work.tokens) / (LINEAR_SHARE * peak)
    attention_rate = peak * attention_share(shape.head_dim) * (1.0 if choice.query_width is None else NARROW)
    forward += forward_attention / attention_rate
    parts = {"linear": linear / (LINEAR_SHARE * peak), "attention": attention / attention_rate}
    backward = sum(parts.values()) - forward
    exposed = Exposed(
        work=work,
        choice=choice,
        link_bytes_per_second=machine.link_bytes_per_second,
        forward=forward,
        backward=backward,
        forward_attention=forward_attention / attention_rate,
        backward_attention=ATTENTION_BACKWARD * forward_attention / attention_rate,
    )
    return Seconds(
        **parts,
        sums=_sums_bytes(work, choice) / (peak / FLOPS_PER_BYTE),
        copies=_exposed(work, choice, machine, forward=forward, backward=backward),
        exchanges=exposed.seconds if work.mesh.ranks > 1 else 0.0,
    )


def _sums_bytes(work: Workload, choice: EngineChoice) -> float:
    """Each tile reads and writes a block's float32 sums once."""
    if choice.keep == "everything" or work.adapters:
        return 0.0
    tiles = -(-work.tokens // choice.tile_tokens)
    return 8.0 * work.shape.layers * tiles * block_parameters(work.shape)


def _exposed(work: Workload, choice: EngineChoice, machine: Machine, *, forward: float, backward: float) -> float:
    memory = predict(work, choice)
    passes = 2 * work.shape.layers  # of the residual gradient, each way
    out = into = 0.0
    for rate, parts in (
        (machine.copy_bytes_per_second, memory.host),
        (machine.disk_bytes_per_second, memory.disk),
    ):
        anchors, gradient = parts["anchors"], parts["residual gradient"]
        out += anchors / rate
        into += (READS * anchors + passes * gradient) / rate
    return max(0.0, out - forward) + max(0.0, into - backward)
