"""Grid: Ulysses inside a node, ring or gather across nodes."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from longspan.attention.documents import Runs
from longspan.attention.layout import Pieces
from longspan.attention.schemes.base import Scheme
from longspan.attention.schemes.gather import Gather
from longspan.attention.schemes.local import ONE_DEVICE, Local
from longspan.attention.schemes.ring import Ring
from longspan.attention.schemes.ulysses import Ulysses
from longspan.parallel.dist import ALONE, Axis
from longspan.parallel.mesh import Across

ACROSS: dict[str, type[Ring] | type[Gather]] = {"ring": Ring, "gather": Gather}


@dataclass(frozen=True, kw_only=True)
class Grid(Scheme):
    """Each node has two chunks in zigzag, in consecutive parts over its ranks; the ranks with the same heads meet.

    Head counts and widths as `Ulysses` takes them; documents and windows as the scheme `across` does.
    Source: arXiv:2405.07719.
    """

    ring: Axis = ALONE
    ulysses: Axis = ALONE
    across: Across = "ring"
    local: Local = ONE_DEVICE
    kv_width: int | None = None
    query_width: int | None = None

    @property
    def scheme(self) -> Ulysses:
        """What it is made of."""
        return Ulysses(
            ulysses=self.ulysses,
            inner=ACROSS[self.across](ring=self.ring, local=self.local),
            kv_width=self.kv_width,
            query_width=self.query_width,
        )

    @property
    def ranks(self) -> int:
        """The product of both axes."""
        return self.scheme.ranks

    @property
    def rank(self) -> int:
        """The ranks of a node follow each other."""
        return self.scheme.rank

    def layout(self, length: int, rank: int) -> Pieces:
        """Zigzag across, consecutive parts inside."""
        return self.scheme.layout(length, rank)

    def forward(
        self,
        q: Float[Tensor, "h T d"],
        k: Float[Tensor, "g T d"],
        v: Float[Tensor, "g T d"],
        *,
        runs: Runs,
        window: int | None,
    ) -> tuple[Float[Tensor, "h T d"], Float[Tensor, "h T"]]:
        """Heads to their ranks, around the nodes, tokens back."""
        return self.scheme.forward(q, k, v, runs=runs, window=window)

    def backward(
        self,
        do: Float[Tensor, "h T d"],
        q: Float[Tensor, "h T d"],
        k: Float[Tensor, "g T d"],
        v: Float[Tensor, "g T d"],
        o: Float[Tensor, "h T d"],
        lse: Float[Tensor, "h T"],
        *,
        runs: Runs,
        window: int | None,
    ) -> tuple[Float[Tensor, "h T d"], Float[Tensor, "g T d"], Float[Tensor, "g T d"]]:
        """The same way with all that the inner schemes need."""
        return self.scheme.backward(do, q, k, v, o, lse, runs=runs, window=window)
