"""Static NTK-aware scaling: a larger base that interpolates the slow pairs and spares the fast ones."""

from typing import Literal

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.base import Factor, ntk_theta, scaling_factor, with_theta


class Ntk(Method):
    """theta' = theta · f^(d/(d − 2)). `factor` null is length / N0. Source: arXiv:2309.00071, section 3.1."""

    kind: Literal["ntk"] = "ntk"
    factor: Factor | None = None

    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """The frequencies of theta'. Raises `ConfigError` for a head of one rotary pair."""
        return with_theta(base, ntk_theta(base, scaling_factor(self.factor, base, length)), length)
