"""Sets of frequencies for layers that turn differently: the model's set, and those that some layers keep. No torch."""

from collections.abc import Sequence

from longspan.rope.frequencies import Frequencies
from longspan.rope.methods.base import STILL
from longspan.shape import OwnPositions


def layer_sets(frequencies: Frequencies, own: Sequence[OwnPositions]) -> tuple[Frequencies, ...]:
    """The set that a stage stretches, and one for each of `own`, of as many pairs, which no stage changes.

    A layer without positions is one whose pairs never turn: a factor of 2^100 (docs/adr/0017-export-check.md).
    """
    return (frequencies, *(_kept(frequencies, entry) for entry in own))


def _kept(frequencies: Frequencies, own: OwnPositions) -> Frequencies:
    still = own.theta is None
    return Frequencies(
        theta=frequencies.theta if own.theta is None else own.theta,
        factors=(STILL if still else own.factor,) * len(frequencies.factors),
        attention_factor=1.0,
        length=frequencies.length,
        trained_length=frequencies.trained_length,
    )
