"""Two sets of factors, one for the original window and one beyond it: the form of the Phi models."""

from dataclasses import replace
from typing import Literal

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.base import AttentionFactor, Factor, scaling_factor
from longspan.rope.methods.longrope import Longrope, su_attention_factor


class Su(Method):
    """omega'_i = omega_i / short_factors[i] up to N0 tokens and omega_i / long_factors[i] beyond: a mixed window.

    Which set holds is decided by the length of the whole text, for all its positions. `attention_factor` null is
    that of LongRoPE at `factor`, null length / N0. Source: the released Phi-3 models (arXiv:2404.14219), whose type
    was first called `su`; mixed windows in training, arXiv:2502.20082, section 4.
    """

    kind: Literal["su"] = "su"
    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    factor: Factor | None = None
    attention_factor: AttentionFactor | None = None

    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """The set for `length`; beyond N0 it remembers the short one, which an export may then write as well.

        Raises `ConfigError` as `longrope` does, for either set.
        """
        attention_factor = self.attention_factor
        if attention_factor is None:
            attention_factor = su_attention_factor(scaling_factor(self.factor, base, length), base.trained_length)
        short, long = (
            Longrope(factors=factors, attention_factor=attention_factor).frequencies(base, length)
            for factors in (self.short_factors, self.long_factors)
        )
        return replace(long, short_factors=short.factors) if length > base.trained_length else short
