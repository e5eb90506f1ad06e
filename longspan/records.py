"""Plain records that cross from one part of the house to another, and into the run folder as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from longspan.utils.stats import wilson


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a retrieval grid: `hits` of `trials` at a length (tokens) and a depth (0 = start, 1 = end).

    Trials that share a context are alike; `worth` is how many independent ones they stand for, all where it is None.
    """

    probe: str
    length: int
    depth: float
    hits: int
    trials: int
    worth: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of the hit rate, on what the trials are worth."""
        if self.worth is None or not self.trials:
            return wilson(self.hits, self.trials)
        return wilson(self.hits / self.trials * self.worth, self.worth)


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Mean score of a task at a length, between 0 and 1, with its 95 % interval from `contexts` clusters.

    A score is the share of what was asked for that the answer holds; a hit scores 1.
    """

    task: str
    length: int
    value: float
    low: float
    high: float
    trials: int
    contexts: int


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Mean log-probability, in nats a token, of a random string that stood `distance` tokens before, over `trials`.

    `floor` is that of strings of the same kind that the text does not hold.
    """

    distance: int
    logprob: float
    low: float
    high: float
    floor: float
    trials: int


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
    scores: tuple[TaskScore, ...] = ()
    recalls: tuple[Recall, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)  # how it was measured, a line each

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Evaluation":
        """Read what `to_json` wrote."""
        return cls(
            name=value["name"],
            model=value["model"],
            cells=tuple(Cell(**cell) for cell in value["cells"]),
            bins=tuple(PositionBin(**entry) for entry in value["bins"]),
            seconds=value["seconds"],
            scores=tuple(TaskScore(**entry) for entry in value.get("scores", ())),
            recalls=tuple(Recall(**entry) for entry in value.get("recalls", ())),
            facts=value.get("facts", {}),
        )

    @property
    def main_probe(self) -> str | None:
        """The probe that headlines speak of: `needle`, or the first that was asked when there is none of that name."""
        names = [cell.probe for cell in self.cells]
        return "needle" if "needle" in names else next(iter(names), None)

    def interval(self, probe: str, length: int) -> tuple[float, float]:
        """95 % interval of a probe's hit rate at a length: over contexts where questions share them, else Wilson's."""
        cells = [cell for cell in self.cells if (cell.probe, cell.length) == (probe, length)]
        hits, trials = sum(cell.hits for cell in cells), sum(cell.trials for cell in cells)
        score = next((s for s in self.scores if (s.task, s.length, s.trials) == (probe, length, trials)), None)
        if score is not None and score.contexts < trials and abs(score.value * trials - hits) < 0.5:
            return score.low, score.high
        worth = sum(cell.trials if cell.worth is None else cell.worth for cell in cells)
        return wilson(hits / trials * worth, worth) if trials else (0.0, 1.0)

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
