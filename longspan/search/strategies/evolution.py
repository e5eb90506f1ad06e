"""LongRoPE's search as published: a population of factors, one a pair, with mutation and crossover."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from longspan.rope.methods.linear import Linear
from longspan.rope.methods.ntk import Ntk
from longspan.rope.methods.yarn import Yarn
from longspan.search.desk import Budget, Desk
from longspan.search.judge import Candidate
from longspan.search.space import Space
from longspan.search.strategies.base import Seconds, Strategy

STEPS = 100  # of a factor: it is searched in hundredths
BEYOND = 1.25  # factors reach 1.25·f
KEPT_TOKENS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)
HALVED_ABOVE_TOKENS = 512 * 1024
TRIES = 20  # to find a member that is not there yet, each


@dataclass(frozen=True)
class _Genome:
    """Factors in hundredths, never falling, and the index of n̂ in `KEPT_TOKENS`."""

    factors: tuple[int, ...]
    kept: int


class Evolution(Strategy):
    """Every pair's factor from 1 to 1.25·f in steps of 0.01, never falling, and n̂, by an evolutionary search.

    The first population is PI, NTK, YaRN and mutations of them. Each round keeps the best `parents`, and adds
    `mutations` of them (each factor with `probability`, anywhere between its neighbours) and `crossovers`. Beyond
    512K tokens population, mutations and crossovers are halved. `search_kept` false leaves n̂ at 0, for no engine knows
    it. Source: arXiv:2402.13753, section 3.2 and appendix A; the attention factor is that of its released models.
    """

    kind: Literal["evolution"] = "evolution"
    population: int = Field(default=64, ge=4)
    rounds: int = Field(default=40, ge=0)
    parents: int = Field(default=32, ge=2)
    mutations: int = Field(default=16, ge=2)
    crossovers: int = Field(default=16, ge=0)
    probability: float = Field(default=0.3, gt=0, le=1)
    search_kept: bool = True
    evaluations: int | None = Field(default=None, ge=1)
    seconds: Seconds | None = None

    @property
    def budget(self) -> Budget:
        """Its evaluations, the whole search if they are null, and seconds."""
        whole = self.population + self.rounds * (self.mutations + self.crossovers)
        return Budget(evaluations=self.evaluations or whole, seconds=self.seconds)

    def run(self, desk: Desk) -> None:
        """All rounds."""
        rng = random.Random(f"evolution/{desk.seed}")
        top = max(STEPS, round(BEYOND * desk.space.factor * STEPS))
        share = 2 if desk.space.length > HALVED_ABOVE_TOKENS else 1
        seeds = [_seed(desk.space, method, top) for method in (Linear(), Ntk(), Yarn())]
        members = _distinct(seeds, self.population // share, lambda: self._mutated(rng.choice(seeds), top=top, rng=rng))
        scored = self._scored(desk, members)
        for _ in range(self.rounds):
            parents = [genome for genome, _ in scored[: self.parents]]
            children = self._children(parents, share=share, top=top, rng=rng)
            scored = sorted(scored[: self.parents] + self._scored(desk, children), key=lambda pair: pair[1])

    def _children(self, parents: Sequence[_Genome], *, share: int, top: int, rng: random.Random) -> list[_Genome]:
        """Mutations first, then crossovers."""
        mutated = _distinct([], self.mutations // share, lambda: self._mutated(rng.choice(parents), top=top, rng=rng))
        return mutated + _distinct([], self.crossovers // share, lambda: _crossed(*rng.sample(parents, 2), rng=rng))

    def _scored(self, desk: Desk, members: Sequence[_Genome]) -> list[tuple[_Genome, float]]:
        candidates = [
            Candidate(
                method=desk.space.longrope([factor / STEPS for factor in member.factors]),
                kept_tokens=KEPT_TOKENS[member.kept],
            )
            for member in members
        ]
        return sorted(zip(members, desk.losses(candidates), strict=True), key=lambda pair: pair[1])

    def _mutated(self, parent: _Genome, *, top: int, rng: random.Random) -> _Genome:
        factors = list(parent.factors)
        for pair in range(len(factors)):
            if rng.random() < self.probability:
                low = factors[pair - 1] if pair else STEPS
                high = factors[pair + 1] if pair + 1 < len(factors) else top
                factors[pair] = rng.randint(low, high)
        kept = parent.kept
        if self.search_kept and rng.random() < self.probability:
            kept = min(max(kept + rng.choice((-1, 1)), 0), len(KEPT_TOKENS) - 1)
        return _Genome(tuple(factors), kept)


def _seed(space: Space, method: Linear | Ntk | Yarn, top: int) -> _Genome:
    """A closed formula in hundredths, within the bounds."""
    factors = [min(max(round(factor * STEPS), STEPS), top) for factor in space.stretch(method)]
    return _Genome(tuple(factors), 0)


def _crossed(one: _Genome, other: _Genome, *, rng: random.Random) -> _Genome:
    """Every factor from either parent, as long as it does not fall; the larger of the two never does."""
    factors: list[int] = []
    for a, b in zip(one.factors, other.factors, strict=True):
        least = factors[-1] if factors else STEPS
        factors.append(rng.choice([factor for factor in (a, b) if factor >= least]))
    return _Genome(tuple(factors), rng.choice((one.kept, other.kept)))


def _distinct(members: Sequence[_Genome], count: int, make: Callable[[], _Genome]) -> list[_Genome]:
    """`members` filled up to `count` with new ones; a space too small to hold so many gives fewer."""
    found = dict.fromkeys(members)
    for _ in range(TRIES * count):
        if len(found) >= count:
            break
        found.setdefault(make())
    return list(found)[:count]
