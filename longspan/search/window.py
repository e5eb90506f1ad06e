"""Factors for the original window of a model that was extended: what it lost on short texts, found again."""

from dataclasses import dataclass, replace
from typing import Any

from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.rope.methods.su import Su
from longspan.search.space import SLACK, Space
from longspan.utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Window(Space):
    """Other factors for texts of up to N0 tokens, each between 1 and the model's own; the attention factor stays.

    Engines have one attention factor for both windows. `length` and `trained_length` are N0, `extended_length` is that
    of the long window. Source: arXiv:2402.13753, section 3.3, which searches factors for 4K and 8K again after the
    extension.
    """

    extended_length: int

    def __post_init__(self) -> None:
        if self.own.factors is None:
            raise ConfigError(
                "search.no-window",
                "the model turns as it was first trained: its original window needs no other factors",
                where="recipe: search.window",
                fix="search on a model that was extended with factors",
            )

    @property
    def base(self) -> RopeBase:
        """The model before it was extended."""
        return replace(self.own, factors=None, attention_factor=1.0)

    @property
    def long_factors(self) -> tuple[float, ...]:
        """The model's own factors, which hold beyond N0."""
        assert self.own.factors is not None
        return self.own.factors

    @property
    def factor(self) -> float:
        """The largest of the model's own factors."""
        return max(self.long_factors)

    def stretch(self, method: Method) -> tuple[float, ...]:
        """As of a space; also refused is what slows a pair more than the long window does."""
        factors = super().stretch(method)
        if any(short > long * (1 + SLACK) for short, long in zip(factors, self.long_factors, strict=True)):
            raise ConfigError(
                "search.falling",
                "a pair is slowed more in the original window than beyond it",
                where="search.strategy",
                fix="a strategy may only try factors from 1 to the model's own",
            )
        return factors

    def frequencies(self, method: Method) -> Frequencies:
        """The short set under the model's own attention factor."""
        return Frequencies(
            theta=self.own.theta,
            factors=self.stretch(method),
            attention_factor=self.own.attention_factor,
            length=self.length,
            trained_length=self.own.trained_length,
        )

    def served(self, method: Method) -> Frequencies:
        """The model's own set, with the short factors beside it."""
        return Frequencies(
            theta=self.own.theta,
            factors=self.long_factors,
            attention_factor=self.own.attention_factor,
            length=self.extended_length,
            trained_length=self.own.trained_length,
            short_factors=self.stretch(method),
        )

    def rope(self, method: Method) -> dict[str, Any]:
        """Both windows, as `su`."""
        both = Su(
            short_factors=self.stretch(method),
            long_factors=self.long_factors,
            attention_factor=self.own.attention_factor,
        )
        value: dict[str, Any] = both.model_dump(mode="json", exclude_none=True)
        return value
