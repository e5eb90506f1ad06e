"""LongRoPE2 in three numbers: a ramp up to the critical pair, and a slope above the factor beyond it."""

import math
from typing import Literal

from pydantic import Field

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.base import AttentionFactor, Factor, scaling_factor, turning_pair, with_factors
from longspan.rope.methods.longrope import su_attention_factor


class Longrope2(Method):
    """lambda_i = (f·e^a)^(i/c) below the critical pair c, f·e^(a + b·(i − c)/(d/2 − c)) from it on.

    `critical_pair` c is a real number, null the last pair that turns at least once in N0 tokens, rounded up; the paper
    finds the true one below it. `excess` a and `slope` b lift the slow pairs above f: the paper searches up to 2f.
    `attention_factor` null is that of LongRoPE. Source: arXiv:2502.20082, whose search of every slow pair is
    here reduced to a and b.
    """

    kind: Literal["longrope2"] = "longrope2"
    factor: Factor | None = None
    critical_pair: float | None = Field(default=None, gt=0)
    excess: float = Field(default=0.0, ge=0, le=2)
    slope: float = Field(default=0.0, ge=0, le=2)
    attention_factor: AttentionFactor | None = None

    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """The frequencies divided by the ramp and the slope; factors never fall from a pair to the next."""
        factor, pairs = scaling_factor(self.factor, base, length), base.rotary_dim // 2
        critical = critical_pair(base) if self.critical_pair is None else min(self.critical_pair, pairs)
        top = math.log(factor) + self.excess
        logs = (
            top * pair / critical if pair < critical else top + self.slope * (pair - critical) / (pairs - critical)
            for pair in range(pairs)
        )
        attention_factor = self.attention_factor
        if attention_factor is None:
            attention_factor = su_attention_factor(factor, base.trained_length)
        return with_factors(base, length, factors=map(math.exp, logs), attention_factor=attention_factor)


def critical_pair(base: RopeBase) -> int:
    """The first pair that does not turn once in N0 tokens, within 1 … d/2 − 1. Source: arXiv:2310.05209, section 4."""
    return min(max(math.ceil(turning_pair(base, 1.0)), 1), max(1, base.rotary_dim // 2 - 1))
