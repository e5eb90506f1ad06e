"""AdamW on float32 weights: PyTorch's own, fused on a GPU."""

import importlib
from typing import Literal

from longspan.train.optimizers.base import Optimizer, Rule


class AdamW(Optimizer):
    """AdamW with float32 weights and moments, 12 bytes a weight."""

    kind: Literal["adamw"] = "adamw"

    @property
    def weight_dtype(self) -> Literal["float32", "bfloat16"]:
        """Float32."""
        return "float32"

    @property
    def state_bytes(self) -> float:
        """Two float32 moments."""
        return 8.0

    def require(self) -> None:
        """Nothing but torch."""

    def rule(self, *, betas: tuple[float, float], epsilon: float) -> Rule:
        """PyTorch's AdamW."""
        made: Rule = importlib.import_module("longspan.train.optimizers._adamw").AdamWRule(betas, epsilon)
        return made
