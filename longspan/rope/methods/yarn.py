"""YaRN: slow pairs are interpolated, fast ones kept, with a ramp between them and hotter logits."""

import math
from typing import Literal

from pydantic import Field, model_validator

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.base import AttentionFactor, Factor, scaling_factor, turning_pair, with_factors


class Yarn(Method):
    """omega'_i = (t_i/f + 1 − t_i) · omega_i with a ramp t that is linear in the pair.

    The ramp runs from the pair that turns `beta_fast` times in N0 tokens to the one that turns `beta_slow` times;
    `truncate` rounds both outwards. `factor` null is length / N0. The attention factor is 0.1·ln f + 1, or with
    `mscale` and `mscale_all_dim` the ratio of (0.1·m·ln f + 1), or `attention_factor` itself.
    Source: arXiv:2309.00071, with the ramp and the corners of its authors' code, which transformers shares.
    """

    kind: Literal["yarn"] = "yarn"
    factor: Factor | None = None
    beta_fast: float = Field(default=32.0, gt=0)
    beta_slow: float = Field(default=1.0, gt=0)
    attention_factor: AttentionFactor | None = None
    mscale: float | None = Field(default=None, gt=0)
    mscale_all_dim: float | None = Field(default=None, gt=0)
    truncate: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> "Yarn":
        if self.beta_fast < self.beta_slow:
            raise ValueError("beta_fast must not be below beta_slow")
        if (self.mscale is None) != (self.mscale_all_dim is None):
            raise ValueError("mscale and mscale_all_dim work only together: give both or neither")
        if self.attention_factor is not None and self.mscale is not None:
            raise ValueError("attention_factor overrides mscale and mscale_all_dim: give one or the other")
        return self

    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """The ramped frequencies and the attention factor."""
        factor = scaling_factor(self.factor, base, length)
        low, high = self._ramp(base)
        ramp = (min(max((pair - low) / (high - low), 0.0), 1.0) for pair in range(base.rotary_dim // 2))
        factors = (1.0 / (t / factor + (1.0 - t)) for t in ramp)
        return with_factors(base, length, factors=factors, attention_factor=self._attention_factor(factor))

    def _ramp(self, base: RopeBase) -> tuple[float, float]:
        """First and last pair of the ramp, never equal."""
        low, high = turning_pair(base, self.beta_fast), turning_pair(base, self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        # d − 1, not d/2 − 1: models were trained with this clamp, and the tighter one changes them by up to 66 %
        low, high = max(low, 0.0), min(high, base.rotary_dim - 1.0)
        return low, high + 0.001 if low == high else high

    def _attention_factor(self, factor: float) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is not None and self.mscale_all_dim is not None:
            return _mscale(factor, self.mscale) / _mscale(factor, self.mscale_all_dim)
        return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0
