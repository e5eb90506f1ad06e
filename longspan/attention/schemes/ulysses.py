"""Ulysses: an all-to-all gives each rank all tokens of some heads, and another one gives its results back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from longspan.attention.documents import Runs
from longspan.attention.functional import wide
from longspan.attention.heads import HeadGeometry
from longspan.attention.layout import Pieces, share, tokens_of
from longspan.attention.schemes.base import Scheme
from longspan.attention.schemes.local import ONE_DEVICE
from longspan.parallel.dist import ALONE, Axis
from longspan.parallel.exchange import Pending, all_to_all

_Parts = Pending[list[Tensor]]  # of an all-to-all under way, one from each rank


@dataclass(frozen=True, kw_only=True)
class Ulysses(Scheme):
    """Tokens of `inner` in consecutive parts over the ranks of `ulysses`; `inner` attends with the heads of a rank.

    Takes what `inner` takes; the ranks must divide the query heads of a call (`attention.heads`). With fewer
    key/value heads than ranks, several ranks get a copy of one. A call goes through the stages of
    `longspan.attention.heads`: `kv_width` key/value heads a rank and stage, each with `query_width` query heads; None
    is as many as there are, in one stage. Small widths are the head-wise chunks of UPipe (arXiv:2602.21196), here
    with every query head on its own key head. Source: arXiv:2309.14509.
    """

    ulysses: Axis = ALONE
    inner: Scheme = ONE_DEVICE
    kv_width: int | None = None
    query_width: int | None = None

    @property
    def ranks(self) -> int:
        """Those of the axis for each of the inner scheme."""
        return self.ulysses.size * self.inner.ranks

    @property
    def rank(self) -> int:
        """Neighbours on the axis follow each other."""
        return self.inner.rank * self.ulysses.size + self.ulysses.rank

    def layout(self, length: int, rank: int) -> Pieces:
        """A part of what the inner scheme gives to all ranks of the axis together."""
        outer, part = divmod(rank, self.ulysses.size)
        return share(self.inner.layout(length, outer), parts=self.ulysses.size, part=part)

    def forward(
        self,
        q: Float[Tensor, "h T d"],
        k: Float[Tensor, "g T d"],
        v: Float[Tensor, "g T d"],
        *,
        runs: Runs,
        window: int | None,
    ) -> tuple[Float[Tensor, "h T d"], Float[Tensor, "h T"]]:
        """Stage by stage; the heads of the next stage are on their way while the inner scheme works."""
        trip = self._trip(q, k, runs)
        o, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=wide(q))
        coming = trip.there(0, (q,), (k, v))
        keys: list[Tensor] = []
        back: list[_Parts] = []
        for stage in range(trip.geometry.stages):
            queries, keys = _arrived(coming[0]), _arrived(coming[1]) or keys
            if stage + 1 < trip.geometry.stages:
                coming = trip.there(stage + 1, (q,), (k, v))
            results = self.inner.forward(*queries, *keys, runs=runs, window=window)
            del queries  # before the way back takes room of its own
            trip.put_queries(stage - 1, back, (o, lse))
            back = trip.back(results)
            del results
        trip.put_queries(stage, back, (o, lse))
        return o, lse

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
        """Stage by stage; what several stages or copies give to one key head adds up in float32 and is rounded once."""
        trip = self._trip(q, k, runs)
        geometry = trip.geometry
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(x, dtype=wide(x)) for x in (k, v))
        coming = trip.there(0, (do, q, o, lse), (k, v))
        keys: list[Tensor] = []
        back: list[_Parts] = []
        totals: list[Tensor] = []
        for stage in range(geometry.stages):
            (do_here, q_here, *kept), keys = _arrived(coming[0]), _arrived(coming[1]) or keys
            if stage + 1 < geometry.stages:
                coming = trip.there(stage + 1, (do, q, o, lse), (k, v))
            found, *shares = self.inner.backward(do_here, q_here, *keys, *kept, runs=runs, window=window)
            del do_here, q_here, kept
            trip.put_queries(stage - 1, back, (dq,))
            back = trip.back((found,))
            del found
            if trip.summed:
                shares = [x.to(wide(x)) for x in shares]
            totals = shares if geometry.group(stage).new_kv else [a + b for a, b in zip(totals, shares, strict=True)]
            del shares
            if (stage + 1) % geometry.stages_of_kv == 0:
                trip.add_keys(stage, trip.back(totals), (dk, dv))
                totals = []
        trip.put_queries(stage, back, (dq,))
        return dq, dk.to(k.dtype), dv.to(v.dtype)

    def _trip(self, q: Tensor, k: Tensor, runs: Runs) -> "_Trip":
        degree, kv_heads = self.ulysses.size, k.shape[0]
        geometry = HeadGeometry(
            heads=q.shape[0],
            kv_heads=kv_heads,
            degree=degree,
            kv_width=self.kv_width or math.lcm(degree, kv_heads) // degree,
            query_width=self.query_width,
        )
        first = self.inner.rank * degree
        counts = [tokens_of(self.layout(runs[-1][1], first + part)) for part in range(degree)]
        return _Trip(self.ulysses, geometry, tuple(counts))


@dataclass(frozen=True)
class _Trip:
    """The ways of heads and tokens between the ranks of an axis; rank i holds `counts[i]` tokens of all heads."""

    axis: Axis
    geometry: HeadGeometry
    counts: tuple[int, ...]

    @property
    def summed(self) -> bool:
        """Whether several results add up to the gradient of one key head."""
        return self.geometry.copies > 1 or self.geometry.stages_of_kv > 1

    def there(self, stage: int, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> tuple[list[_Parts], list[_Parts]]:
        """Begin to send each rank its heads of own tokens; keys only if the stage has new ones."""
        groups = [self.geometry.group(stage, rank) for rank in range(self.axis.size)]
        parts = [[_pick(x, group.query_heads) for group in groups] for x in queries]
        if groups[self.axis.rank].new_kv:
            parts += [[_pick(x, group.kv_heads) for group in groups] for x in keys]
        own = [x[self.axis.rank] for x in parts]
        shapes = [[(len(x), count, *x.shape[2:]) for count in self.counts] for x in own]
        found = all_to_all(parts, self.axis, shapes=shapes, operation="all-to-all of heads")
        return found[: len(queries)], found[len(queries) :]

    def back(self, results: Sequence[Tensor]) -> list[_Parts]:
        """Begin to send each rank its tokens of the heads that are here."""
        own = self.counts[self.axis.rank]
        parts = [list(torch.split(x, list(self.counts), dim=1)) for x in results]
        shapes = [[(len(x), own, *x.shape[2:])] * self.axis.size for x in results]
        return all_to_all(parts, self.axis, shapes=shapes, operation="all-to-all of tokens")

    def put_queries(self, stage: int, back: list[_Parts], outputs: Sequence[Tensor]) -> None:
        """What a stage's query heads gave, into their places, and `back` is empty; nothing before the first stage."""
        for out in outputs if back else ():
            for rank, part in enumerate(back.pop(0).wait()):
                out[list(self.geometry.group(stage, rank).query_heads)] = part

    def add_keys(self, stage: int, back: Sequence[_Parts], totals: Sequence[Tensor]) -> None:
        """What a stage's key heads gave, onto their sums; ranks in order, so that sums are the same every time."""
        for pending, total in zip(back, totals, strict=True):
            for rank, part in enumerate(pending.wait()):
                for head, gradient in zip(self.geometry.group(stage, rank).kv_heads, part, strict=True):
                    total[head] += gradient


def _pick(x: Tensor, heads: tuple[int, ...]) -> Tensor:
    """Some heads; a view where they stand together."""
    if heads == tuple(range(heads[0], heads[-1] + 1)):
        return x[heads[0] : heads[-1] + 1]
    return x[list(heads)]


def _arrived(coming: list[_Parts]) -> list[Tensor]:
    """All tokens of the heads that came, in the order of the ranks; their parts are let go one after another."""
    return [torch.cat(coming.pop(0).wait(), dim=1) for _ in range(len(coming))]
