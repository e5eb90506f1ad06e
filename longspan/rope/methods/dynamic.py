"""Dynamic NTK scaling: the base is rebuilt for the length at hand."""

from typing import Literal

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.base import Factor, ntk_theta, scaling_factor, with_theta


class Dynamic(Method):
    """theta(l) = theta · (f·l/N0 − (f − 1))^(d/(d − 2)) for l > N0, else theta. `factor` null is l / N0.

    Each stage and each evaluated length l has its own frequencies; the export holds those of its one length.
    Source: arXiv:2309.00071, section 3.3, in the form of transformers.
    """

    kind: Literal["dynamic"] = "dynamic"
    factor: Factor | None = None

    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """The frequencies of theta(length). Raises `ConfigError` for a head of one rotary pair."""
        factor = scaling_factor(self.factor, base, length)
        stretch = max(1.0, length / base.trained_length)
        return with_theta(base, ntk_theta(base, factor * stretch - (factor - 1)), length)
