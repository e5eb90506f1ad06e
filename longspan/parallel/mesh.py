"""The mesh of ranks, as whole numbers: how many on each axis, and who stands where. No torch."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from longspan.utils.errors import ConfigError

Across = Literal["ring", "gather"]
AXES = ("replicate", "shard", "ring", "ulysses")  # the last is the innermost: neighbours of one node


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Ranks as `replicate x shard x ring x ulysses`.

    Ranks that differ in `ring` or `ulysses` hold other tokens of the same rows; ranks that differ in `replicate` or
    `shard` hold other rows. `across` is the scheme on the ring axis. Raises `parallel.mesh` for what cannot be.
    """

    replicate: int = 1
    shard: int = 1
    ring: int = 1
    ulysses: int = 1
    across: Across = "ring"

    def __post_init__(self) -> None:
        for name, size in zip(AXES, self.sizes, strict=True):
            if size < 1:
                raise ConfigError("parallel.mesh", f"{name} = {size} ranks", fix="1 turns an axis off")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Ranks along each of `AXES`."""
        return tuple(getattr(self, name) for name in AXES)

    @property
    def ranks(self) -> int:
        """All ranks."""
        return math.prod(self.sizes)

    @property
    def context(self) -> int:
        """Ranks that share the tokens of a row."""
        return self.ring * self.ulysses

    @property
    def data(self) -> int:
        """Groups of ranks that have rows of their own."""
        return self.replicate * self.shard

    def __str__(self) -> str:
        """The axes that have several ranks."""
        named = zip(AXES, self.sizes, strict=True)
        return " x ".join(f"{name} {size}" for name, size in named if size > 1) or "one rank"

    def check(self, ranks: int) -> None:
        """Raise `parallel.mesh` unless the mesh has a place for each of `ranks` and no more."""
        if self.ranks == ranks:
            return
        fits = []
        for name, size in zip(AXES, self.sizes, strict=True):
            others = self.ranks // size
            if ranks % others == 0:
                fits.append(f"{name} = {ranks // others}")
        text = " x ".join(f"{name} {size}" for name, size in zip(AXES, self.sizes, strict=True))
        divisors = ", ".join(str(number) for number in range(1, ranks + 1) if ranks % number == 0)
        raise ConfigError(
            "parallel.mesh",
            f"the mesh {text} has {self.ranks} places for {ranks} ranks",
            fix=" or ".join(fits) if fits else f"degrees that divide {ranks} ranks: {divisors}",
        )

    def for_rows(self, rows: int) -> "Mesh":
        """The same ranks when what was one row for those of a context is `rows` rows: as few as can share each of them.

        Ranks that have worked on the same row stay neighbours, and each of the new groups is a part of an old one.
        """
        context = self.context // math.gcd(self.context, rows)
        ulysses = math.gcd(self.ulysses, context)
        shard = self.shard * (self.context // context)
        return replace(self, shard=shard, ring=context // ulysses, ulysses=ulysses)

    def place(self, rank: int) -> tuple[int, ...]:
        """Where a rank stands on each axis."""
        found = []
        for size in reversed(self.sizes):
            rank, at = divmod(rank, size)
            found.append(at)
        return tuple(reversed(found))

    def peers(self, axis: str, rank: int) -> tuple[int, ...]:
        """The ranks that differ from `rank` along one axis only, itself included, in the order of that axis."""
        inner = math.prod(self.sizes[AXES.index(axis) + 1 :])
        first = rank - self.place(rank)[AXES.index(axis)] * inner
        return tuple(first + i * inner for i in range(getattr(self, axis)))
