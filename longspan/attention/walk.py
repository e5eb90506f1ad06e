"""A long causal row in blocks of keys that stay in the cache of the device, merged in float32."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from longspan.attention.functional import Kernel
from longspan.attention.online import merge_

Merge = Callable[[Tensor, Tensor, Tensor, Tensor], None]
GRAIN = 128  # tokens of a kernel's tile: large blocks are whole numbers of it


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One kernel, called on blocks of `keys` keys: causal on the diagonal, full for the rows below.

    `rows` bounds the queries of a call. None takes all rows below a block at once: few calls, and an accumulator for
    the whole row. `merge` is `merge_` of `online` or a twin of it: in place, on `[h, s, d]` and `[h, s]`, any strides.
    """

    kernel: Kernel
    keys: int
    rows: int | None = None
    merge: Merge = merge_

    def forward(
        self, q: Float[Tensor, "n h s d"], k: Float[Tensor, "n g s d"], v: Float[Tensor, "n g s d"]
    ) -> tuple[Float[Tensor, "n h s d"], Float[Tensor, "n h s"]]:
        """Causal attention of whole rows, as one call of the kernel would give it."""
        o = torch.empty_like(q)
        lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        for own in even(0, q.shape[2], self.rows):
            o[:, :, own], lse[:, :, own] = self._rows(q, k, v, own)
        return o, lse

    def _rows(self, q: Tensor, k: Tensor, v: Tensor, own: slice) -> tuple[Tensor, Tensor]:
        """Some queries of the rows against all keys that they may see."""
        wide = torch.promote_types(q.dtype, torch.float32)
        o = q.new_empty(q[:, :, own].shape, dtype=wide)
        lse = o.new_empty(o.shape[:3])
        for queries, keys, causal in self._calls(own):
            part, part_lse = self.kernel.forward(q[:, :, queries], k[:, :, keys], v[:, :, keys], causal=causal)
            place = slice(queries.start - own.start, queries.stop - own.start)
            if keys.start == 0:  # the first keys that these queries see
                o[:, :, place], lse[:, :, place] = part, part_lse
            else:
                for row in range(q.shape[0]):
                    self.merge(o[row, :, place], lse[row, :, place], part[row], part_lse[row])
            del part, part_lse  # before the next call makes its own
        return o, lse

    def _calls(self, own: slice) -> Iterator[tuple[slice, slice, bool]]:
        """Queries, keys and mask of each call for some queries: keys before them, then the square of their own."""
        for keys in even(0, own.start, self.keys):
            yield own, keys, False
        for keys in even(own.start, own.stop, self.keys):
            yield keys, keys, True
            if keys.stop < own.stop:
                yield slice(keys.stop, own.stop), keys, False

    def backward(
        self,
        do: Float[Tensor, "n h s d"],
        q: Float[Tensor, "n h s d"],
        k: Float[Tensor, "n g s d"],
        v: Float[Tensor, "n g s d"],
        o: Float[Tensor, "n h s d"],
        lse: Float[Tensor, "n h s"],
    ) -> tuple[Float[Tensor, "n h s d"], Float[Tensor, "n g s d"], Float[Tensor, "n g s d"]]:
        """Gradients from the o and lse of whole rows: each call gives exactly its block's share."""
        wide = torch.promote_types(q.dtype, torch.float32)
        dq = torch.zeros(q.shape, dtype=wide, device=q.device)
        dk, dv = torch.empty_like(k), torch.empty_like(v)
        length = q.shape[2]
        for keys in even(0, length, self.keys):
            key_sum, value_sum = (x.new_zeros(x[:, :, keys].shape, dtype=wide) for x in (k, v))
            for rows, causal in self._below(keys, length):
                part = self.kernel.backward(
                    *(x[:, :, rows] for x in (do, q)),
                    *(x[:, :, keys] for x in (k, v)),
                    *(x[:, :, rows] for x in (o, lse)),
                    causal=causal,
                )
                for total, share in zip((dq[:, :, rows], key_sum, value_sum), part, strict=True):
                    total += share
            dk[:, :, keys], dv[:, :, keys] = key_sum, value_sum
        return dq.to(q.dtype), dk, dv

    def _below(self, keys: slice, length: int) -> Iterator[tuple[slice, bool]]:
        """The queries that see a block of keys: those of its own square, then those below it."""
        yield keys, True
        for rows in even(keys.stop, length, self.rows):
            yield rows, False


def even(start: int, stop: int, most: int | None) -> Iterator[slice]:
    """Blocks of at most `most` tokens and about one size: a short last one would be a shape that kernels dislike."""
    length = stop - start
    most = most or max(length, 1)
    count = -(-length // most)
    grain = GRAIN if most % GRAIN == 0 and length >= GRAIN * count else 1
    # Rounded up, a border moves by less than a grain, and no block of whole grains passes `most`.
    borders = [min(start + -(-(length * i // max(count, 1)) // grain) * grain, stop) for i in range(count + 1)]
    for low, high in itertools.pairwise(borders):
        yield slice(low, high)
