"""All-gather of keys and values: each rank attends from its own tokens to all that it may see."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from longspan.attention.documents import Runs
from longspan.attention.functional import wide
from longspan.attention.layout import (
    Pieces,
    Placed,
    document_of,
    gaps,
    hiding,
    in_order,
    local_runs,
    placed,
    rectangles,
    tokens_of,
    zigzag,
)
from longspan.attention.schemes.base import Scheme
from longspan.attention.schemes.local import ONE_DEVICE, Local
from longspan.parallel.dist import ALONE, Axis
from longspan.parallel.exchange import all_gather, reduce_scatter


@dataclass(frozen=True)
class _Stretch:
    """A piece of own queries with the keys before it that a window reaches, as tokens of the batch."""

    piece: Placed
    start: int

    @property
    def keys(self) -> slice:
        return slice(self.start, self.piece.stop)

    @property
    def before(self) -> int:
        return self.piece.start - self.start


@dataclass(frozen=True, kw_only=True)
class Gather(Scheme):
    """Tokens in zigzag over the ranks of `ring`. Takes all documents, windows and head counts.

    A rank holds the keys and values of the heads of one call for all tokens, in backward also their gradients in
    float32: it is for few heads a call. At most two merges, whatever the number of ranks.
    """

    ring: Axis = ALONE
    local: Local = ONE_DEVICE

    @property
    def ranks(self) -> int:
        """Those of the axis."""
        return self.ring.size

    @property
    def rank(self) -> int:
        """That on the axis."""
        return self.ring.rank

    def layout(self, length: int, rank: int) -> Pieces:
        """Zigzag."""
        return zigzag(length, ranks=self.ring.size, rank=rank)

    def forward(
        self,
        q: Float[Tensor, "h T d"],
        k: Float[Tensor, "g T d"],
        v: Float[Tensor, "g T d"],
        *,
        runs: Runs,
        window: int | None,
    ) -> tuple[Float[Tensor, "h T d"], Float[Tensor, "h T"]]:
        """Own tokens, then the keys in each gap before them; under a window, each piece with the keys it reaches."""
        length = runs[-1][1]
        own, keys, values = self.layout(length, self.rank), self._whole(k, length), self._whole(v, length)
        if not own:
            return q.clone(), q.new_empty(q.shape[:2], dtype=wide(q))
        if (window := hiding(window, runs)) is not None:
            stretches = _stretches(own, runs, window)
            longer = [_queries(q, stretches), *(_keys(x, stretches) for x in (keys, values))]
            o, lse = self.local.forward(*longer, runs=_runs_of(stretches, runs), window=window)
            return _own(o, stretches), _own(lse, stretches)
        o, lse = self.local.forward(q, k, v, runs=local_runs(own, runs), window=None)
        for gap in gaps(own, length):
            for rectangle in rectangles(own, (gap,), runs):
                o = o.to(lse.dtype)
                mine, there = rectangle.queries, _shifted(rectangle.keys, gap[0])
                part, part_lse = self.local.full(q[:, mine], keys[:, there], values[:, there])
                self.local.merge(o[:, mine], lse[:, mine], part, part_lse)
                del part, part_lse
        return o.to(q.dtype), lse

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
        """The same calls; gradients of keys add up in float32, here and over the ranks."""
        length = runs[-1][1]
        own, keys, values = self.layout(length, self.rank), self._whole(k, length), self._whole(v, length)
        dk, dv = (torch.zeros_like(x, dtype=wide(x)) for x in (keys, values))
        dq = torch.zeros_like(q, dtype=wide(q))
        if own and (window := hiding(window, runs)) is not None:
            stretches = _stretches(own, runs, window)
            longer = [*(_queries(x, stretches) for x in (do, q)), *(_keys(x, stretches) for x in (keys, values))]
            kept = [_queries(x, stretches) for x in (o, lse)]
            found = self.local.backward(*longer, *kept, runs=_runs_of(stretches, runs), window=window)
            dq = _own(found[0], stretches)
            _add_keys(found[1:], (dk, dv), stretches)
        elif own:
            shares = self.local.backward(do, q, k, v, o, lse, runs=local_runs(own, runs), window=None)
            dq += shares[0]
            for piece in placed(own):
                dk[:, piece.start : piece.stop] += shares[1][:, piece.local]
                dv[:, piece.start : piece.stop] += shares[2][:, piece.local]
            del shares  # before the next call makes its own
            for gap in gaps(own, length):
                for rectangle in rectangles(own, (gap,), runs):
                    mine, there = rectangle.queries, _shifted(rectangle.keys, gap[0])
                    kept = [x[:, mine] for x in (o, lse)]
                    shares = self.local.full_backward(do[:, mine], q[:, mine], keys[:, there], values[:, there], *kept)
                    for total, part in zip((dq[:, mine], dk[:, there], dv[:, there]), shares, strict=True):
                        total += part
                    del shares, part
        del keys, values  # before the way home takes room of its own
        dk, dv = (self._home(x, length) for x in (dk, dv))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)

    def _layouts(self, length: int) -> list[Pieces]:
        return [self.layout(length, rank) for rank in range(self.ranks)]

    def _whole(self, x: Float[Tensor, "g s d"], length: int) -> Float[Tensor, "g T d"]:
        """Everybody's keys or values, in the order of the batch."""
        layouts = self._layouts(length)
        parts = all_gather(x, self.ring, sizes=[tokens_of(pieces) for pieces in layouts], dim=1).wait()
        if self.ranks == 1:
            return x
        return torch.cat([parts[place.rank][:, place.local] for place in in_order(layouts)], dim=1)

    def _home(self, x: Float[Tensor, "g T d"], length: int) -> Float[Tensor, "g s d"]:
        """The sum over ranks of the gradients of own keys or values."""
        empty = x[:, :0]
        shares = [
            torch.cat([empty, *(x[:, start:stop] for start, stop in pieces)], dim=1) for pieces in self._layouts(length)
        ]
        return reduce_scatter(shares, self.ring, dim=1).wait()


# -- windows: pieces made longer by the keys before them, whose queries are nobody's ----------------------------------


def _stretches(own: Pieces, runs: Runs, window: int) -> tuple[_Stretch, ...]:
    found = []
    for piece in placed(own):
        document, _ = document_of(piece.start, runs)
        found.append(_Stretch(piece, max(document, piece.start - window + 1)))
    return tuple(found)


def _runs_of(stretches: Sequence[_Stretch], runs: Runs) -> Runs:
    """The documents of the stretches, which stand one after another and see nothing of each other."""
    found: list[tuple[int, int]] = []
    offset = 0
    for stretch in stretches:
        pieces = ((stretch.start, stretch.piece.stop),)
        found += ((low + offset, high + offset) for low, high in local_runs(pieces, runs))
        offset += tokens_of(pieces)
    return tuple(found)


def _queries(x: Float[Tensor, "h s *d"], stretches: Sequence[_Stretch]) -> Float[Tensor, "h t *d"]:
    """Own queries and zeros for the others: with a gradient of zero they give exactly nothing."""
    parts = []
    for stretch in stretches:
        parts += [x.new_zeros(x.shape[0], stretch.before, *x.shape[2:]), x[:, stretch.piece.local]]
    return torch.cat(parts, dim=1)


def _keys(x: Float[Tensor, "g T d"], stretches: Sequence[_Stretch]) -> Float[Tensor, "g t d"]:
    return torch.cat([x[:, stretch.keys] for stretch in stretches], dim=1)


def _own(x: Float[Tensor, "h t *d"], stretches: Sequence[_Stretch]) -> Float[Tensor, "h s *d"]:
    """The way back of `_queries`."""
    parts, offset = [], 0
    for stretch in stretches:
        offset += stretch.before
        size = stretch.piece.stop - stretch.piece.start
        parts.append(x[:, offset : offset + size])
        offset += size
    return torch.cat(parts, dim=1)


def _add_keys(shares: Sequence[Tensor], totals: Sequence[Tensor], stretches: Sequence[_Stretch]) -> None:
    """The way back of `_keys`, for gradients."""
    for share, total in zip(shares, totals, strict=True):
        offset = 0
        for stretch in stretches:
            size = stretch.keys.stop - stretch.keys.start
            total[:, stretch.keys] += share[:, offset : offset + size]
            offset += size


def _shifted(places: slice, by: int) -> slice:
    return slice(places.start + by, places.stop + by)
