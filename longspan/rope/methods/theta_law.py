"""The theta law: the base that keeps the critical pair when the context grows."""

import math
from typing import Literal

from pydantic import Field

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.base import with_theta
from longspan.utils.errors import ConfigError


class ThetaLaw(Method):
    """theta' = theta^(ln(N1/2π) / ln(N0/2π)). Source: arXiv:2310.05209, theorem 2.

    N1 is the stage's length, or `length` when it is set: so that short stages can already train with the base of the
    last one. Below N0 the law would lower theta; it is kept instead.
    """

    kind: Literal["theta_law"] = "theta_law"
    length: int | None = Field(default=None, ge=7)

    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """The frequencies of theta'. Raises `ConfigError` when N0 is no longer than the fastest pair's turn, 2π."""
        if base.trained_length <= 2 * math.pi:
            raise ConfigError(
                "rope.trained-length",
                f"the theta law needs a model trained to more than 6 tokens, this one has {base.trained_length}",
                fix="use default with a theta of your choice",
            )
        target = max(self.length or length, base.trained_length)
        growth = math.log(target / (2 * math.pi)) / math.log(base.trained_length / (2 * math.pi))
        # capped where a float ends, so that an absurd length meets the error of `with_theta`, not an OverflowError
        theta = base.theta ** min(growth, 700 / math.log(base.theta))
        return with_theta(base, theta, length)
