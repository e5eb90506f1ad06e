"""Methods with a few numbers, as boxes that a search can look through."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longspan.rope.frequencies import Method
from longspan.rope.methods.base import turning_pair
from longspan.rope.methods.default import Default
from longspan.rope.methods.longrope import Longrope, su_attention_factor
from longspan.rope.methods.longrope2 import Longrope2
from longspan.rope.methods.ntk import Ntk
from longspan.rope.methods.theta_law import ThetaLaw
from longspan.rope.methods.yarn import Yarn
from longspan.search.space import Space

TEN_TURNS, HALF_TURN = 10.0, 0.5  # in N0 tokens: between them a ramp may end
MOST_KEPT = 0.95  # of the pairs below the end of a ramp
LEAST_BEND, MOST_BEND = 0.5, 4.0
LEAST_TURNS, MOST_TURNS = 0.1, 128.0  # of YaRN's ramp: published models use 1 to 128
POWERS = (-2.0, 2.0)  # of two, by which a theta's growth is stretched


@dataclass(frozen=True, kw_only=True)
class Family:
    """A method of `size` numbers, each from 0 to 1. `starts` are points worth trying first.

    Where the last number is the attention factor, `formula_heat` is the place of its formula.
    """

    size: int
    method: Callable[[Sequence[float]], Method]
    starts: tuple[tuple[float, ...], ...]
    formula_heat: float | None = None

    @property
    def without_heat(self) -> "Family":
        """The family with the attention factor of its formula: for rows that skip.

        Few keys dilute no attention, so such rows ask for no heat, whatever the length; whole texts do. Source:
        docs/LOG.md, 2026-11-24.
        """
        if self.formula_heat is None:
            return self
        heat, method = self.formula_heat, self.method
        return Family(
            size=self.size - 1,
            method=lambda point: method((*point, heat)),
            starts=tuple(dict.fromkeys(start[:-1] for start in self.starts)),
        )


def longrope2(space: Space) -> Family:
    """Where the ramp ends and begins, its bend, what slow pairs get above the factor, and the attention factor.

    The ramp ends between the pair that turns ten times in N0 tokens and the one that turns half a time; the paper
    searches from ten to one (arXiv:2502.20082, section 3.2), of which models that are not trained afterwards may want
    less. The slowest pair goes up to 2f, or twice as far as the theta law takes it; the attention factor up to the
    square of LongRoPE's.
    """
    low, one, high = (_pair(space, turns) for turns in (TEN_TURNS, 1.0, HALF_TURN))
    heat = 2 * math.log(su_attention_factor(space.factor, space.trained_length))
    bottom, top = math.log(LEAST_BEND), math.log(MOST_BEND)
    law = math.log(space.factor) * (space.pairs - one) / one  # a ramp of the theta law goes on beyond its f at c
    steepest = max(math.log(2), 2 * law)

    def method(point: Sequence[float]) -> Method:
        end = low + (high - low) * point[0]
        return Longrope2(
            factor=space.factor,  # what is found holds whatever the length of the stage that uses it
            critical_pair=end,
            kept_pairs=MOST_KEPT * end * point[1],
            bend=math.exp(bottom + (top - bottom) * point[2]),
            excess=math.log(2) * point[3],
            slope=steepest * point[4],
            attention_factor=math.exp(heat * point[5]),
        )

    place = (one - low) / (high - low) if high > low else 0.0
    straight = -bottom / (top - bottom)  # a bend of 1
    kept = [min(_pair(space, turns) / (MOST_KEPT * one), 1.0) for turns in (32.0, 4.0)]
    like_yarn = tuple((place, share, 0.75, 0.0, 0.0, g) for share in kept for g in (0.5, 0.9))
    like_ntk = tuple((c, 0.0, straight, 0.0, 0.0, 0.5) for c in (place, place / 2))
    like_law = ((place, 0.0, straight, 0.0, law / steepest, 0.0),)
    return Family(size=6, method=method, starts=like_yarn + like_ntk + like_law, formula_heat=0.5)


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
            factor=space.factor,
            beta_fast=math.exp(fast),
            beta_slow=min(math.exp(slow), math.exp(fast)),
            attention_factor=math.exp(1.5 * formula * point[2]),
        )

    published = tuple(
        ((math.log(fast) - bottom) / (top - bottom), (math.log(slow) - bottom) / (math.log(fast) - bottom), 2 / 3)
        for fast, slow in ((32, 1), (4, 1))
    )
    return Family(size=3, method=method, starts=published, formula_heat=2 / 3)


def ntk(space: Space) -> Family:
    """The factor f of NTK scaling as f^t, t from a quarter to four."""
    return _growing(lambda power: Ntk(factor=space.factor**power))


def theta_law(space: Space) -> Family:
    """The theta law with its growth stretched: ln θ' − ln θ times t, t from a quarter to four."""
    law = ThetaLaw().frequencies(space.base, space.length).theta
    own = space.own.theta
    return _growing(lambda power: Default(theta=own * (law / own) ** power))


def window(space: Space) -> Family:
    """For the original window of an extended model: its own factors to the power t, from one t for the fastest pair to
    another for the slowest, each from 0 (unscaled) to 1 (as beyond the window).
    """
    own = space.own.factors or (1.0,) * space.pairs

    def method(point: Sequence[float]) -> Method:
        shares = (point[0] + (point[1] - point[0]) * pair / max(1, space.pairs - 1) for pair in range(space.pairs))
        factors: list[float] = []
        for factor, share in zip(own, shares, strict=True):
            factors.append(min(factor, max(factor**share, *factors[-1:], 1.0)))
        return Longrope(factors=tuple(factors), attention_factor=1.0)

    return Family(size=2, method=method, starts=((0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.5, 0.5)))


FAMILIES = {"longrope2": longrope2, "yarn": yarn, "ntk": ntk, "theta_law": theta_law, "window": window}


def _growing(method: Callable[[float], Method]) -> Family:
    low, high = POWERS
    return Family(
        size=1,
        method=lambda point: method(2 ** (low + (high - low) * point[0])),
        starts=tuple(((math.log2(power) - low) / (high - low),) for power in (0.5, 1.0, 2.0)),
    )


def _pair(space: Space, turns: float) -> float:
    """The pair that turns so often in N0 tokens, between the second and the last."""
    return min(max(turning_pair(space.base, turns), 1.0), max(1.0, space.pairs - 1.0))
