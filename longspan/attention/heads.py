"""Which query heads are worked on together, when and where: whole numbers only.

Heads are worked through in stages. In a stage each rank of the exchange holds some key/value heads and some of the
query heads that they serve. One device is an exchange of degree 1.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from longspan.utils.errors import LongspanError


@dataclass(frozen=True)
class HeadGroup:
    """What one rank works on in one stage: its key/value heads and all query heads that meet them there.

    Query heads stand in the order of the key/value heads, equally many for each. `new_kv` is False where the key/value
    heads are those of the stage before: they need no second exchange, and their gradients go on adding up.
    """

    stage: int
    kv_heads: tuple[int, ...]
    query_heads: tuple[int, ...]
    new_kv: bool


@dataclass(frozen=True, kw_only=True)
class HeadGeometry:
    """The stages of `heads` query and `kv_heads` key/value heads over `degree` ranks.

    A rank takes `kv_width` key/value heads in a stage, each with `query_width` of its query heads (None: all that it
    serves). Where ranks outnumber key/value heads, several ranks hold copies of one. Raises `attention.heads` for what
    does not divide. Derived in section 4 of the engine's reference; the tests write it down a second time.
    """

    heads: int
    kv_heads: int
    degree: int = 1
    kv_width: int = 1
    query_width: int | None = None

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise _error(f"{self.heads} query heads do not divide among {self.kv_heads} key/value heads", self.heads)
        if self.heads % self.degree:
            raise _error(f"{self.heads} query heads do not divide among {self.degree} ranks", self.heads, of="ranks")
        if self.heads % self._places:
            widths = self.heads // self.degree
            raise _error(f"a rank cannot hold {self.kv_width} key/value heads at once", widths, of="heads at once")
        if self.served % self.width:
            raise _error(f"a key/value head cannot meet {self.width} query heads at once", self.served, of="heads")

    @cached_property
    def _places(self) -> int:
        """Key/value heads in the hands of all ranks together."""
        return self.degree * self.kv_width

    @cached_property
    def copies(self) -> int:
        """How many ranks or places hold one key/value head, each for other query heads."""
        return self._places // math.gcd(self._places, self.kv_heads)

    @cached_property
    def served(self) -> int:
        """Query heads of one copy of a key/value head."""
        return self.heads // (self.kv_heads * self.copies)

    @cached_property
    def width(self) -> int:
        """Query heads that meet one key/value head in one stage on one rank."""
        return self.served if self.query_width is None else self.query_width

    @cached_property
    def stages_of_kv(self) -> int:
        """Consecutive stages that use the same key/value heads."""
        return self.served // self.width

    @cached_property
    def stages(self) -> int:
        """Stages until every query head was worked on."""
        return self.heads // (self._places * self.width)

    def group(self, stage: int, rank: int = 0) -> HeadGroup:
        """What `rank` works on in `stage`."""
        first = (stage // self.stages_of_kv) * self._places + rank * self.kv_width
        copies = range(first, first + self.kv_width)
        begin = (stage % self.stages_of_kv) * self.width
        return HeadGroup(
            stage=stage,
            kv_heads=tuple(copy // self.copies for copy in copies),
            query_heads=tuple(copy * self.served + begin + j for copy in copies for j in range(self.width)),
            new_kv=stage % self.stages_of_kv == 0,
        )

    def groups(self, rank: int = 0) -> Iterator[HeadGroup]:
        """Everything that `rank` works on, in order."""
        return (self.group(stage, rank) for stage in range(self.stages))

    def order(self) -> tuple[int, ...]:
        """The query heads as they come out: by stage, then rank, then place."""
        return tuple(
            head
            for stage in range(self.stages)
            for rank in range(self.degree)
            for head in self.group(stage, rank).query_heads
        )

    def places(self) -> tuple[int, ...]:
        """Where each query head comes out: the inverse of `order`, to be applied before the output projection."""
        found = [0] * self.heads
        for place, head in enumerate(self.order()):
            found[head] = place
        return tuple(found)


def divisors(number: int) -> tuple[int, ...]:
    """All that divide it, ascending: the degrees that work for so many query heads."""
    return tuple(candidate for candidate in range(1, number + 1) if number % candidate == 0)


def _error(what: str, number: int, *, of: str = "key/value heads") -> LongspanError:
    numbers = ", ".join(str(divisor) for divisor in divisors(number))
    return LongspanError("attention.heads", what, fix=f"numbers of {of} that work: {numbers}")
