"""Plain rotary positions: the model's own base, or a new one (adjusted base frequency)."""

from typing import Literal

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.base import Theta, with_factors, with_theta


class Default(Method):
    """omega_i = theta^(−2i/d). `theta` null keeps the model's. Source: arXiv:2104.09864; new bases arXiv:2309.16039."""

    kind: Literal["default"] = "default"
    theta: Theta | None = None

    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """The frequencies of theta, whatever the length; without one the model's own, scaled as they are."""
        if self.theta is None and base.factors is not None:
            return with_factors(base, length, factors=base.factors, attention_factor=base.attention_factor)
        return with_theta(base, base.theta if self.theta is None else self.theta, length)
