"""p-RoPE: only the fastest pairs turn, the others carry no position."""

from typing import Literal

from pydantic import Field

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.base import STILL, Factor, with_factors


class Proportional(Method):
    """omega'_i = omega_i / factor for the first `share` of the pairs, rounded down; the rest never turn.

    A pair that never turns has the rescale factor 2^100: float32 makes its angle 0 at every position, in every engine.
    Source: arXiv:2410.06205; the form of transformers' `proportional`.
    """

    kind: Literal["proportional"] = "proportional"
    share: float = Field(default=1.0, gt=0, le=1)
    factor: Factor = 1.0

    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """The frequencies of the turning pairs divided by the factor, whatever the length."""
        turning = int(self.share * base.rotary_dim // 2)
        still = base.rotary_dim // 2 - turning
        return with_factors(base, length, factors=(self.factor,) * turning + (STILL,) * still)
