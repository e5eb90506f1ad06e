"""How long a step will take: operations over rates, and what copies cannot hide behind them.

The rates are shares of the device's dense peak as measured on one H200 (docs/LOG.md): they rank choices, and promise
nothing.
"""

from dataclasses import dataclass

from longspan.engine.settings import EngineChoice
from longspan.plan.flops import (
    ATTENTION_BACKWARD,
    attention_forward_flops,
    hardware_flops,
    linear_forward_flops,
    repeated_attention_flops,
)
from longspan.plan.machine import Machine
from longspan.plan.memory import block_parameters, predict
from longspan.plan.workload import Workload

LINEAR_SHARE, ATTENTION_SHARE = 0.65, 0.55  # of the peak, sustained at the power limit
FLOPS_PER_BYTE = 250.0  # the peak over the rate of the device's memory
UNKNOWN_PEAK, CPU_PEAK = 50e12, 0.1e12
READS = 2  # in the backward pass x, o and the gradient are each read twice


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Where the time of one forward and backward pass goes."""

    linear: float
    attention: float
    sums: float  # adding every tile's weight gradients to the block's
    copies: float  # to and from other tiers, as far as the work does not hide them

    @property
    def total(self) -> float:
        """All of it."""
        return self.linear + self.attention + self.sums + self.copies


def predict_seconds(work: Workload, choice: EngineChoice, machine: Machine) -> Seconds:
    """The time of one forward and backward pass on a machine; ranks share the work evenly, and exchanges take none."""
    shape, lengths, ranks = work.shape, work.document_lengths, work.spread.ranks
    peak = machine.peak_flops or (CPU_PEAK if machine.shared else UNKNOWN_PEAK)
    forward_attention = attention_forward_flops(shape, lengths) / ranks
    attention = (1 + ATTENTION_BACKWARD) * forward_attention + repeated_attention_flops(shape, lengths, choice) / ranks
    linear = hardware_flops(shape, lengths, choice, adapters=work.adapters) / ranks - attention
    forward = linear_forward_flops(shape, work.tokens) / (LINEAR_SHARE * peak)
    forward += forward_attention / (ATTENTION_SHARE * peak)
    parts = {"linear": linear / (LINEAR_SHARE * peak), "attention": attention / (ATTENTION_SHARE * peak)}
    backward = sum(parts.values()) - forward
    return Seconds(
        **parts,
        sums=_sums_bytes(work, choice) / (peak / FLOPS_PER_BYTE),
        copies=_exposed(work, choice, machine, forward=forward, backward=backward),
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
