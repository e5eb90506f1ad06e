"""The mesh that `mesh = "auto"` stands for: ranks on other rows while there are rows, else on the same row."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longspan.parallel.mesh import Across, Mesh
from longspan.utils.errors import ConfigError

TIMES = (2, 3, 4, 6, 8, 16, 32, 64)  # as many ranks, among which a refusal looks for enough


def choose_mesh(
    *,
    ranks: int,
    ranks_per_node: int,
    rows_per_step: int,
    length: int,
    heads: int,
    windows: Sequence[int | None] = (),
    fits: Callable[[int], bool],
) -> Mesh:
    """The mesh with the fewest ranks to a row whose share of it fits one rank; the others work on other rows.

    `fits(local_tokens)` tells whether one rank can hold so many tokens of a row; what fits must fit when it is less.
    Ranks of one row are on the `ulysses` axis as far as query heads divide and a node reaches, and on `ring` beyond.
    The ring does no windows: where one hides keys, `across` is `gather`. Rows of a step are spread evenly over `shard`.
    Raises `ConfigError` (`parallel.auto`) with what would help when no mesh does.
    """
    need = _Need(ranks_per_node, length, heads, functools.cache(fits))
    for context in _divisors(ranks):
        if rows_per_step % (ranks // context) == 0 and (ulysses := need.ulysses(ranks, context)):
            ring = context // ulysses
            hidden = any(window is not None and window < length for window in windows)
            across: Across = "gather" if ring > 1 and hidden else "ring"
            return Mesh(shard=ranks // context, ring=ring, ulysses=ulysses, across=across)
    raise _refusal(need, ranks=ranks, rows_per_step=rows_per_step)


@dataclass(frozen=True)
class _Need:
    """A row and what one rank can take of it."""

    ranks_per_node: int
    length: int
    heads: int
    fits: Callable[[int], bool]

    def ulysses(self, ranks: int, context: int) -> int:
        """Ranks on the inner axis when so many share a row; 0 if they cannot."""
        if not self.enough(context) or not self.fits(self.share(context)):
            return 0
        # Groups whose size divides both begin and end inside one node.
        return math.gcd(context, self.heads, math.gcd(ranks, self.ranks_per_node))

    def share(self, context: int) -> int:
        """The most tokens of a row on one rank."""
        return -(-self.length // context)

    def enough(self, context: int) -> bool:
        """Whether every rank gets a token: a zigzag has two chunks a rank."""
        return context == 1 or self.length >= 2 * context


def _refusal(need: _Need, *, ranks: int, rows_per_step: int) -> ConfigError:
    """Why no mesh does, by its first cause."""
    share = need.share(ranks)
    if not need.enough(ranks) and need.fits(share):
        what = f"rows of {need.length:,} tokens are too short to be shared by {ranks} ranks"
        fixes = [f"a step of a multiple of {ranks} rows, so that every rank has its own"]
    else:
        what = f"a row of {need.length:,} tokens does not fit: on {ranks} ranks each would hold {share:,} of them"
        fixes = ["shorter rows, LoRA, or an engine that keeps less"]
    if enough := _enough_ranks(need, ranks, rows_per_step):
        fixes.insert(0, f"{enough} ranks")
    return ConfigError("parallel.auto", what, where='recipe: mesh = "auto"', fix="; or ".join(fixes))


def _enough_ranks(need: _Need, ranks: int, rows_per_step: int) -> int | None:
    """A number of ranks for which there is a mesh: the first that is enough, else the most that are fewer."""
    counts: list[int] = [*(ranks * times for times in TIMES), *range(ranks - 1, 0, -1)]
    for count in counts:
        for context in _divisors(count):
            if rows_per_step % (count // context) == 0 and need.ulysses(count, context):
                return count
    return None


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
