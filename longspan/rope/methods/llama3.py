"""The scaling of Llama 3.1: slow pairs are interpolated, fast ones kept, with a ramp linear in turns."""

import math
from typing import Literal

from pydantic import Field, model_validator

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.base import Factor, scaling_factor, with_factors


class Llama3(Method):
    """omega'_i = ((1 − t_i)/f + t_i) · omega_i with t_i = (N/w_i − low)/(high − low), clipped to 0 … 1.

    w_i = 2π/omega_i; N is `original_length`, or N0 when it is null. `factor` null is length / N0.
    Source: the reference code of Llama 3.1 (factor 8, low 1, high 4, original length 8192).
    """

    kind: Literal["llama3"] = "llama3"
    factor: Factor | None = None
    low_freq_factor: float = Field(default=1.0, gt=0)
    high_freq_factor: float = Field(default=4.0, gt=0)
    original_length: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _ordered(self) -> "Llama3":
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be above low_freq_factor")
        return self

    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """The frequencies, interpolated where a pair turns fewer than `high_freq_factor` times."""
        factor = scaling_factor(self.factor, base, length)
        original = self.original_length or base.trained_length
        d, span = base.rotary_dim, self.high_freq_factor - self.low_freq_factor
        turns = (original / (2 * math.pi * base.theta ** (2 * pair / d)) for pair in range(d // 2))
        ramp = (min(max((turn - self.low_freq_factor) / span, 0.0), 1.0) for turn in turns)
        return with_factors(base, length, factors=(1.0 / ((1.0 - t) / factor + t) for t in ramp))
