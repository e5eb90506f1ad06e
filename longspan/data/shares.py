"""Which part of a mix a sample belongs to, so that shares hold exactly over any first n samples."""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class _Choice:
    """A two-way choice; a branch is another one, or the number of a part."""

    left: "_Choice | int"
    right: "_Choice | int"
    left_share: Fraction

    def left_of(self, first: int) -> int:
        """How many of the `first` samples go left: their share, rounded."""
        top, bottom = self.left_share.as_integer_ratio()
        return (2 * first * top + bottom) // (2 * bottom)


class Shares:
    """Divides the samples 0, 1, 2, … among parts, in closed form.

    The choices form Huffman's tree, and the left branch has round(n · share) of the first n that reach it. Each
    choice is off by at most 1/2, and of an error two levels above at most half comes down in that tree, so
    no part is ever off by more than 2. Rational arithmetic keeps this exact for every n.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self.shares = tuple(shares)
        order = itertools.count()  # breaks ties, so that the tree is always the same
        branches: list[tuple[Fraction, int, _Choice | int]]
        branches = [(Fraction(share), next(order), part) for part, share in enumerate(shares)]
        heapq.heapify(branches)
        while len(branches) > 1:
            small, _, right = heapq.heappop(branches)
            large, _, left = heapq.heappop(branches)
            choice = _Choice(left, right, large / (small + large))
            heapq.heappush(branches, (small + large, next(order), choice))
        self._root = branches[0][2]

    def place(self, sample: int) -> tuple[int, int]:
        """The part that a sample belongs to, and how many samples of this part came before."""
        branch, index = self._root, sample
        while isinstance(branch, _Choice):
            before, after = branch.left_of(index), branch.left_of(index + 1)
            branch, index = (branch.left, before) if after > before else (branch.right, index - before)
        return branch, index
