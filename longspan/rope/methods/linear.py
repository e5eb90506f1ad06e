"""Position interpolation: every pair slowed by the same factor."""

from typing import Literal

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.base import Factor, scaling_factor, with_factors


class Linear(Method):
    """lambda_i = f for every pair. `factor` null is length / N0. Source: arXiv:2306.15595."""

    kind: Literal["linear"] = "linear"
    factor: Factor | None = None

    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """The frequencies divided by the factor."""
        factor = scaling_factor(self.factor, base, length)
        return with_factors(base, length, factors=(factor,) * (base.rotary_dim // 2))
