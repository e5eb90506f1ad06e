"""LongRoPE2 in a few numbers: a ramp up to the critical pair, and a slope above the factor beyond it."""

import math
from typing import Literal

from pydantic import Field, model_validator

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.base import AttentionFactor, Factor, scaling_factor, turning_pair, with_factors
from longspan.rope.methods.longrope import su_attention_factor
from longspan.utils.errors import ConfigError


class Longrope2(Method):
    """lambda_i = 1 up to `kept_pairs` s, f·e^a raised to ((i − s)/(c − s))^`bend` up to the critical pair c, and
    f·e^(a + b·(i − c)/(d/2 − c)) from it on.

    `critical_pair` c is a real number, null the first pair that does not turn once in N0 tokens; the paper finds the
    true one below it. `excess` a and `slope` b lift the slow pairs above f: the paper searches up to 2f, a larger theta
    goes further. With s = 0 and
    a bend of 1 the fast pairs are the paper's NTK ramp; a larger s and bend keep them, as YaRN does.
    `attention_factor` null is that of LongRoPE. Source: arXiv:2502.20082, whose search of every slow pair is here
    reduced to a and b; s and the bend are an addition.
    """

    kind: Literal["longrope2"] = "longrope2"
    factor: Factor | None = None
    critical_pair: float | None = Field(default=None, gt=0)
    kept_pairs: float = Field(default=0.0, ge=0)
    bend: float = Field(default=1.0, gt=0, le=16)
    excess: float = Field(default=0.0, ge=0, le=2)
    slope: float = Field(default=0.0, ge=0, le=16)
    attention_factor: AttentionFactor | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Longrope2":
        if self.critical_pair is not None and self.kept_pairs >= self.critical_pair:
            raise ValueError("kept_pairs must be below critical_pair")
        return self

    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """The frequencies divided by the ramp and the slope; factors never fall from a pair to the next.

        Raises `ConfigError` when `kept_pairs` is not below the critical pair of this model.
        """
        factor, pairs = scaling_factor(self.factor, base, length), base.rotary_dim // 2
        critical = critical_pair(base) if self.critical_pair is None else self.critical_pair
        if self.kept_pairs >= critical:
            raise ConfigError(
                "rope.kept-pairs",
                f"kept_pairs {self.kept_pairs:g} is not below the critical pair {critical:g}",
                where="rope.kept_pairs",
                fix="keep fewer pairs",
            )
        top, width = math.log(factor) + self.excess, critical - self.kept_pairs
        logs = (
            top * (max(pair - self.kept_pairs, 0.0) / width) ** self.bend
            if pair < critical
            else top + self.slope * (pair - critical) / (pairs - critical)
            for pair in range(pairs)
        )
        attention_factor = self.attention_factor
        if attention_factor is None:
            attention_factor = su_attention_factor(factor, base.trained_length)
        return with_factors(base, length, factors=map(math.exp, logs), attention_factor=attention_factor)


def critical_pair(base: RopeBase) -> int:
    """The first pair that does not turn once in N0 tokens, within 1 … d/2 − 1. Source: arXiv:2310.05209, section 4."""
    return min(max(math.ceil(turning_pair(base, 1.0)), 1), max(1, base.rotary_dim // 2 - 1))
