"""What position methods share: the scaling factor, and the two shapes of result (a new base, or factors a pair)."""

import math
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from longspan.rope.frequencies import Frequencies, RopeBase
from longspan.utils.errors import ConfigError

MOST_THETA = 1e30  # float32 engines still hold every theta^(2i/d) below this

MOST_FACTOR = 2.0**20
STILL = 2.0**100  # the rescale factor of a pair that never turns

Factor = Annotated[float, Field(ge=1, le=MOST_FACTOR)]
Theta = Annotated[float, Field(gt=1, le=MOST_THETA)]
AttentionFactor = Annotated[float, Field(gt=0, le=100)]


def scaling_factor(factor: float | None, base: RopeBase, length: int) -> float:
    """The factor f that was asked for, or N1/N0 when none was; never below 1."""
    return max(1.0, length / base.trained_length) if factor is None else factor


def with_theta(base: RopeBase, theta: float, length: int) -> Frequencies:
    """Frequencies of a plain base `theta`: every rescale factor and the attention factor are 1.

    Raises `ConfigError` when theta is too large for the float32 of serving engines.
    """
    if not theta <= MOST_THETA:
        raise ConfigError(
            "rope.theta",
            f"this method needs theta {theta:.3g} at {length} tokens, more than {MOST_THETA:.0e}",
            where=f"a model trained to {base.trained_length} tokens",
            fix="choose a shorter length or another method",
        )
    return Frequencies(
        theta=theta,
        factors=(1.0,) * (base.rotary_dim // 2),
        attention_factor=1.0,
        length=length,
        trained_length=base.trained_length,
    )


def with_factors(
    base: RopeBase, length: int, *, factors: Iterable[float], attention_factor: float = 1.0
) -> Frequencies:
    """Frequencies of the model's own theta, pair i divided by `factors[i]`."""
    return Frequencies(
        theta=base.theta,
        factors=tuple(factors),
        attention_factor=attention_factor,
        length=length,
        trained_length=base.trained_length,
    )


def ntk_theta(base: RopeBase, growth: float) -> float:
    """Theta that slows the last pair `growth` times and leaves the first alone: theta · growth^(d/(d − 2)).

    Raises `ConfigError` when there is only one pair. Source: the "NTK-aware" post that arXiv:2309.00071, section 3.1,
    describes.
    """
    d = base.rotary_dim
    if d < 4:
        raise ConfigError(
            "rope.one-pair", f"NTK scaling needs two rotary pairs, this model has {d // 2}", fix="use linear"
        )
    return float(base.theta * growth ** (d / (d - 2)))


def turning_pair(base: RopeBase, turns: float) -> float:
    """The pair, as a real number, that turns `turns` times in N0 tokens: (d/2)·log_theta(N0 / (2π·turns))."""
    return base.rotary_dim * math.log(base.trained_length / (turns * 2 * math.pi)) / (2 * math.log(base.theta))
