"""AdamW on bfloat16 weights that are rounded at random, with moments of 8 bits: torchao's."""

import importlib
import importlib.util
from typing import Literal

from longspan.train.optimizers.base import Optimizer, Rule
from longspan.utils.errors import ConfigError


class AdamW8(Optimizer):
    """AdamW with bfloat16 weights and block-scaled 8-bit moments, 4 bytes a weight (arXiv:2110.02861).

    Updates are formed in float32 and rounded to bfloat16 up or down at random, so that on average none is lost. The
    random numbers follow from a weight's name and its number of updates.
    """

    kind: Literal["adamw8"] = "adamw8"

    @property
    def weight_dtype(self) -> Literal["float32", "bfloat16"]:
        """Bfloat16."""
        return "bfloat16"

    @property
    def state_bytes(self) -> float:
        """Two moments of one byte, and a float32 scale for every 256 of them."""
        return 2.0 + 2 * 4 / 256

    def require(self) -> None:
        """The package `torchao`; looked for, not imported, which takes seconds."""
        if importlib.util.find_spec("torchao") is None:
            raise ConfigError(
                "optimizer.missing",
                "the optimizer 'adamw8' needs a package that is not installed: torchao",
                where="train.optimizer.kind",
                fix="pip install 'longspan[small]', or set kind = \"adamw\"",
            )

    def rule(self, *, betas: tuple[float, float], epsilon: float) -> Rule:
        """Torchao's AdamW8bit."""
        self.require()
        made: Rule = importlib.import_module("longspan.train.optimizers._adamw8").AdamW8Rule(betas, epsilon)
        return made
