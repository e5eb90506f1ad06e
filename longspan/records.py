"""Plain records that cross from one part of the house to another, and into the run folder as JSON."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from longspan.utils.stats import wilson


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a retrieval grid: `hits` of `trials` at a length (tokens) and a depth (0 = start, 1 = end)."""

    probe: str
    length: int
    depth: float
    hits: int
    trials: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of the hit rate."""
        return wilson(self.hits, self.trials)


@dataclass(frozen=True, kw_only=True)
class PositionBin:
    """Loss over the tokens whose position lies in [low, high): `nll_sum` in nats over `tokens` targets."""

    low: int
    high: int
    nll_sum: float
    tokens: int

    @property
    def nll(self) -> float:
        """Mean loss in nats per token."""
        return self.nll_sum / self.tokens if self.tokens else float("nan")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that one evaluation of one checkpoint found."""

    name: str  # "before", "after", or what the user called it
    model: str  # sha256 of the weights and of the position settings
    cells: tuple[Cell, ...]
    bins: tuple[PositionBin, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Evaluation":
        """Read what `to_json` wrote."""
        cells = tuple(Cell(**cell) for cell in value["cells"])
        bins = tuple(PositionBin(**entry) for entry in value["bins"])
        return cls(name=value["name"], model=value["model"], cells=cells, bins=bins, seconds=value["seconds"])

    @property
    def main_probe(self) -> str | None:
        """The probe that headlines speak of: `needle`, or the first that was asked when there is none of that name."""
        names = [cell.probe for cell in self.cells]
        return "needle" if "needle" in names else next(iter(names), None)

    def by_length(self, probe: str) -> dict[int, tuple[int, int]]:
        """Hits and trials of a probe for every length, depths added up."""
        totals: dict[int, tuple[int, int]] = {}
        for cell in self.cells:
            if cell.probe == probe:
                hits, trials = totals.get(cell.length, (0, 0))
                totals[cell.length] = hits + cell.hits, trials + cell.trials
        return totals


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One line of `metrics.jsonl`: what one optimizer step saw. Loss in nats per unit of target weight, times
    in seconds.
    """

    step: int
    stage: int
    length: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int  # tokens seen since the run began, this step included
    targets: float  # sum of target weights of this step
    seconds: float  # of this step
    # partial: weights whose gradient was not finite were left out; skipped: nothing changed
    event: Literal["step", "partial", "skipped"] = "step"
