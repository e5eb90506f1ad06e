"""Documents in the flattened tokens of a batch, as plain numbers: which tokens may see each other. No torch."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

Runs = tuple[tuple[int, int], ...]  # (start, stop) of each document in the flattened tokens, one after the other


def runs_of(spans: tuple[tuple[int, ...], ...], length: int) -> Runs:
    """The documents of rows of `length` tokens that are laid one after another; `spans` as in `longspan.batch`."""
    assert all(row[0] == 0 and row[-1] == length for row in spans), "borders of a row are (0, ..., S)"
    return tuple(
        (row * length + low, row * length + high)
        for row, borders in enumerate(spans)
        for low, high in itertools.pairwise(borders)
        if low < high
    )


@dataclass(frozen=True)
class Group:
    """`count` consecutive documents of one length: one batched kernel call."""

    start: int
    length: int
    count: int

    @property
    def stop(self) -> int:
        """The first token after the group."""
        return self.start + self.length * self.count


def equal_groups(runs: Runs) -> Iterator[Group]:
    """Consecutive runs, gathered as long as their lengths are equal."""
    for length, members in itertools.groupby(runs, key=lambda run: run[1] - run[0]):
        found = tuple(members)
        yield Group(start=found[0][0], length=length, count=len(found))


def stretches(runs: Runs, short_tokens: int) -> Iterator[tuple[bool, Runs]]:
    """Consecutive runs that are all shorter than `short_tokens` (True), or all at least as long (False)."""
    for short, members in itertools.groupby(runs, key=lambda run: run[1] - run[0] < short_tokens):
        yield short, tuple(members)


def from_zero(runs: Runs) -> Runs:
    """The same runs, counted from the first token of the first."""
    first = runs[0][0]
    return tuple((start - first, stop - first) for start, stop in runs)


def cover(runs: Runs, tokens: int) -> bool:
    """Whether the runs lie one after another from token 0 to the last: every token in exactly one."""
    borders = [0, *(stop for _, stop in runs)]
    return borders[-1] == tokens and all(
        start == before < stop for before, (start, stop) in zip(borders[:-1], runs, strict=True)
    )
