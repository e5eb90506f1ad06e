"""Methods with a few numbers, as boxes that a search can look through."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longspan.rope.frequencies import Method
from longspan.rope.methods.base import turning_pair
from longspan.rope.methods.default import Default
from longspan.rope.methods.longrope import su_attention_factor
from longspan.rope.methods.longrope2 import Longrope2, critical_pair
from longspan.rope.methods.ntk import Ntk
from longspan.rope.methods.theta_law import ThetaLaw
from longspan.rope.methods.yarn import Yarn
from longspan.search.space import Space

TEN_TURNS = 10.0  # pairs that turn so often in N0 tokens are well trained: LongRoPE2 searches from there
LEAST_TURNS, MOST_TURNS = 0.1, 128.0  # of YaRN's ramp: published models use 1 to 128
POWERS = (-2.0, 2.0)  # of two, by which a theta's growth is stretched


@dataclass(frozen=True, kw_only=True)
class Family:
    """A method of `size` numbers, each from 0 to 1. `starts` are points worth trying first."""

    size: int
    method: Callable[[Sequence[float]], Method]
    starts: tuple[tuple[float, ...], ...]


def longrope2(space: Space) -> Family:
    """Critical pair from the ten-period pair to the theoretical one, excess and slope up to 2f, attention factor.

    Source: arXiv:2502.20082, section 3.2 for the bounds.
    """
    high = float(critical_pair(space.base))
    low = min(max(1.0, turning_pair(space.base, TEN_TURNS)), high)
    heat = 2 * math.log(su_attention_factor(space.factor, space.trained_length))

    def method(point: Sequence[float]) -> Method:
        return Longrope2(
            critical_pair=low + (high - low) * point[0],
            excess=math.log(2) * point[1],
            slope=math.log(2) * point[2],
            attention_factor=math.exp(heat * point[3]),
        )

    starts = tuple((c, 0.0, 0.0, g) for c in (1.0, 0.5, 0.0) for g in (0.5, 0.0))
    return Family(size=4, method=method, starts=starts)


def yarn(space: Space) -> Family:
    """Both ends of the ramp, in turns on a logarithmic scale, and the attention factor up to one and a half times its
    formula's logarithm.
    """
    bottom, top = math.log(LEAST_TURNS), math.log(MOST_TURNS)
    formula = math.log(0.1 * math.log(space.factor) + 1)

    def method(point: Sequence[float]) -> Method:
        fast = bottom + (top - bottom) * point[0]
        slow = bottom + (fast - bottom) * point[1]
        return Yarn(
            beta_fast=math.exp(fast),
            beta_slow=min(math.exp(slow), math.exp(fast)),
            attention_factor=math.exp(1.5 * formula * point[2]),
        )

    published = tuple(
        ((math.log(fast) - bottom) / (top - bottom), (math.log(slow) - bottom) / (math.log(fast) - bottom), 2 / 3)
        for fast, slow in ((32, 1), (4, 1))
    )
    return Family(size=3, method=method, starts=published)


def ntk(space: Space) -> Family:
    """The factor f of NTK scaling as f^t, t from a quarter to four."""
    return _growing(lambda power: Ntk(factor=space.factor**power))


def theta_law(space: Space) -> Family:
    """The theta law with its growth stretched: ln θ' − ln θ times t, t from a quarter to four."""
    law = ThetaLaw().frequencies(space.base, space.length).theta
    own = space.own.theta
    return _growing(lambda power: Default(theta=own * (law / own) ** power))


FAMILIES = {"longrope2": longrope2, "yarn": yarn, "ntk": ntk, "theta_law": theta_law}


def _growing(method: Callable[[float], Method]) -> Family:
    low, high = POWERS
    return Family(
        size=1,
        method=lambda point: method(2 ** (low + (high - low) * point[0])),
        starts=tuple(((math.log2(power) - low) / (high - low),) for power in (0.5, 1.0, 2.0)),
    )
