"""How a recipe steers the search for position settings."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from longspan.config import Settings, any_kind
from longspan.probes import Probe
from longspan.probes.needle import Needle
from longspan.rope.methods.linear import Linear
from longspan.rope.methods.theta_law import ThetaLaw
from longspan.search.strategies.evolution import Evolution
from longspan.search.strategies.formula import Formula
from longspan.search.strategies.gradient import Gradient
from longspan.search.strategies.structured import Structured

if TYPE_CHECKING:
    from longspan.search.strategies.base import Strategy as StrategyChoice

    ProbeChoice = Probe
else:  # the choices are the files of a folder, known at run time only
    StrategyChoice = any_kind("longspan.search.strategies")
    ProbeChoice = any_kind("longspan.probes")

Count = Annotated[int, Field(ge=1)]
Round = tuple[Count, Count]


class Compare(Settings):
    """A race of strategies at several lengths, with several seeds, judged on held-out documents.

    `factors` times the model's length are the lengths. Each seed draws its own texts to search on and its own random
    numbers. `windows` whole held-out stretches of a document are read by every winner; `needles` lines are planted in
    each of `needle_contexts` held-out texts and asked for.
    """

    factors: Annotated[tuple[Annotated[float, Field(gt=1)], ...], Field(min_length=1)] = (2.0, 4.0, 8.0, 16.0)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    strategies: Annotated[tuple[StrategyChoice, ...], Field(min_length=1)] = (
        Formula(rope=Linear()),
        Structured(family="ntk"),
        Structured(family="yarn"),
        Formula(rope=ThetaLaw()),
        Evolution(),
        Structured(),
        Gradient(),
    )
    windows: Count = 4
    needles: Count = 10
    needle_contexts: Count = 2

    @field_validator("strategies")
    @classmethod
    def _no_window(cls, strategies: tuple[Any, ...]) -> tuple[Any, ...]:
        if any(isinstance(strategy, Structured) and strategy.family == "window" for strategy in strategies):
            raise ValueError("a window is searched for a model that was extended; it takes part in no race")
        return strategies

    @field_validator("factors", "seeds")
    @classmethod
    def _once(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) < len(values):
            raise ValueError("each value may stand once")
        return values

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [strategy.name for strategy in self.strategies]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two strategies go by the name {', '.join(twice)}: keep one of them")
        return self


class SearchSettings(Settings):
    """How settings are searched for `length` tokens, null as far as the last stage reaches, on training texts.

    `measure` says what candidates are judged by: "perplexity", the loss of all tokens, or "needle", the loss of the
    answers about `needles` planted lines. Strategies explore on one sheet: with `explore` "skip" that is `skip_rows`
    texts of `skip_tokens` tokens in pieces of `piece_tokens` whose positions are spread over the whole length, so
    that its cost does not grow with the length; with "full" it is one text of the whole length. The best then meet on
    full texts: round (keep, texts) of `halving` measures the best `keep` on `texts` of them. `pass_tokens` go through
    the model at once, null as many as this device usually takes. With `window` the model is one that was extended
    before, and factors for its original window are searched; the strategy is then "structured" of the family "window".
    With `export` the model is written with what was found, to search/export: shipped without training.
    """

    length: Annotated[int, Field(ge=64)] | None = None
    strategy: StrategyChoice = Structured()
    window: bool = False
    measure: Literal["perplexity", "needle"] = "perplexity"
    probe: ProbeChoice = Needle()
    needles: Count = 32
    explore: Literal["skip", "full"] = "skip"
    skip_tokens: Annotated[int, Field(ge=64)] = 4096
    skip_rows: Count = 2
    piece_tokens: Annotated[int, Field(ge=16)] = 256
    halving: Annotated[tuple[Round, ...], Field(min_length=1)] = ((6, 1), (2, 2))
    pass_tokens: Annotated[int, Field(ge=64)] | None = None
    export: bool = False
    compare: Compare = Compare()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        keeps, texts = zip(*self.halving, strict=True)
        if list(keeps) != sorted(keeps, reverse=True) or list(texts) != sorted(texts):
            raise ValueError("halving keeps fewer and fewer on more and more texts, such as [[6, 1], [2, 2]]")
        family = self.strategy.family if isinstance(self.strategy, Structured) else None
        if self.window != (family == "window"):
            raise ValueError('window = true goes with strategy = { kind = "structured", family = "window" }')
        if self.window and self.length is not None:
            raise ValueError("the length of a window is that of the model: leave out length")
        if self.skip_tokens % self.piece_tokens:
            raise ValueError(f"skip_tokens {self.skip_tokens} is no multiple of piece_tokens {self.piece_tokens}")
        if self.probe.most_items is not None and self.probe.most_items < self.needles:
            raise ValueError(f"a text carries {self.probe.most_items} line of {self.probe.kind}: lower needles")
        return self
