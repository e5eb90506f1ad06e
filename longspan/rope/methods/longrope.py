"""LongRoPE: one rescale factor a pair, searched or taken from a published model."""

import math
from itertools import pairwise
from typing import Literal

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.base import MOST_FACTOR, AttentionFactor, scaling_factor, with_factors
from longspan.utils.errors import ConfigError


class Longrope(Method):
    """omega'_i = omega_i / factors[i], the same at every length.

    `factors` has rotary_dim/2 entries, positive and non-decreasing. `attention_factor` null is
    sqrt(1 + ln f / ln N0) with f = length / N0. Source: arXiv:2402.13753; the attention factor from the models
    released with it.
    """

    kind: Literal["longrope"] = "longrope"
    factors: tuple[float, ...]
    attention_factor: AttentionFactor | None = None

    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """The frequencies divided by the factors.

        Raises `ConfigError` when the factors are not one a pair, not positive, or fall from one pair to the next.
        """
        pairs = base.rotary_dim // 2
        if len(self.factors) != pairs:
            raise _refused(f"{len(self.factors)} factors for a model of {pairs} rotary pairs", "give one factor a pair")
        for pair, factor in enumerate(self.factors):
            if not 1 / MOST_FACTOR <= factor <= MOST_FACTOR:
                what = f"factor {factor} of pair {pair} is not between {1 / MOST_FACTOR:.0e} and {MOST_FACTOR:.0e}"
                raise _refused(what, "1 leaves a pair as it is")
        for pair, (here, following) in enumerate(pairwise(self.factors)):
            if following < here:
                what = f"factors fall from {here} (pair {pair}) to {following} (pair {pair + 1})"
                raise _refused(what, "factors never fall from a pair to the next slower one")
        attention_factor = self.attention_factor
        if attention_factor is None:
            attention_factor = su_attention_factor(scaling_factor(None, base, length), base.trained_length)
        return with_factors(base, length, factors=self.factors, attention_factor=attention_factor)


def su_attention_factor(factor: float, trained_length: int) -> float:
    """sqrt(1 + ln f / ln N0), 1 when f is at most 1: the rule of LongRoPE's released models."""
    return math.sqrt(1 + math.log(factor) / math.log(trained_length)) if factor > 1 else 1.0


def _refused(what: str, fix: str) -> ConfigError:
    return ConfigError("rope.factors", what, where="rope.factors", fix=fix)
