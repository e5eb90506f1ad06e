"""What is searched: position settings for one model and one length, as a whole or on top of a model's own scaling."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.longrope import Longrope, su_attention_factor
from longspan.utils.errors import ConfigError

SLACK = 1e-9  # what rounding may take from factors that never fall


@dataclass(frozen=True, kw_only=True)
class Space:
    """A model, the length at which it works, and the length for which settings are searched.

    `own` is the model's rotary set-up. `trained_length` is the context that its weights know with it: N0, or more for a
    model that was extended before. Settings are then found on top of its own (a second interpolation): factors are
    multiplied, and so are attention factors, which is LongRoPE's rule for the whole factor:
    su(a, N0)·su(b, a·N0) = su(a·b, N0).
    """

    own: RopeBase
    trained_length: int
    length: int

    def __post_init__(self) -> None:
        if self.length <= self.trained_length:
            raise ConfigError(
                "search.length",
                f"the model works at {self.trained_length:,} tokens already; {self.length:,} is no longer",
                where="recipe: search.length",
                fix="ask for a greater length",
            )

    @property
    def base(self) -> RopeBase:
        """The model as the methods see it: unscaled, trained to the length at which it works."""
        return replace(self.own, trained_length=self.trained_length, factors=None, attention_factor=1.0)

    @property
    def factor(self) -> float:
        """f, how many times longer the text becomes."""
        return self.length / self.trained_length

    @property
    def pairs(self) -> int:
        """d/2."""
        return self.own.rotary_dim // 2

    def stretch(self, method: Method) -> tuple[float, ...]:
        """How many times slower each pair turns than the model's own, under this method.

        Raises `ConfigError` when a pair is slowed less than a faster one, or turns faster than before: such settings
        are never measured, and so never found.
        """
        found = method.frequencies(self.base, self.length)
        growth = found.theta / self.own.theta
        factors = tuple(f * growth ** (pair / self.pairs) for pair, f in enumerate(found.factors))
        lowest, where = min((factor, pair) for pair, factor in enumerate(factors))
        falls = [pair for pair, (a, b) in enumerate(pairwise(factors)) if b < a * (1 - SLACK)]
        if lowest < 1 - SLACK or falls:
            pair = falls[0] if falls else where
            raise ConfigError(
                "search.falling",
                f"{method.kind} slows pair {pair} more than the next slower one, or speeds it up",  # type: ignore[attr-defined]
                where="search.strategy",
                fix="a strategy may only try factors of at least 1 that never fall",
            )
        return factors

    def frequencies(self, method: Method) -> Frequencies:
        """The set that a method gives this model, on top of its own scaling if it has one."""
        found, factors = method.frequencies(self.base, self.length), self.stretch(method)
        if self.own.factors is None:
            return found
        return Frequencies(
            theta=self.own.theta,
            factors=tuple(own * more for own, more in zip(self.own.factors, factors, strict=True)),
            attention_factor=self.own.attention_factor * found.attention_factor,
            length=self.length,
            trained_length=self.own.trained_length,
        )

    def served(self, method: Method) -> Frequencies:
        """What the model is shipped with: the set that it was measured with."""
        return self.frequencies(method)

    def rope(self, method: Method) -> dict[str, Any]:
        """The settings as a recipe writes them for this model: the method, or factors that hold both scalings."""
        if self.own.factors is not None:
            found = self.frequencies(method)
            method = Longrope(factors=found.factors, attention_factor=found.attention_factor)
        value: dict[str, Any] = method.model_dump(mode="json", exclude_none=True)
        return value

    def longrope(self, factors: Sequence[float], *, attention_factor: float | None = None) -> Longrope:
        """Factors as a method; a fall that rounding left is levelled. `attention_factor` null is LongRoPE's."""
        level: list[float] = []
        if attention_factor is None:
            attention_factor = su_attention_factor(self.factor, self.trained_length)
        for factor in factors:
            level.append(max(factor, level[-1]) if level else factor)
        return Longrope(factors=tuple(level), attention_factor=attention_factor)
