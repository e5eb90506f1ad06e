"""One block forward and backward by hand: token-wise work in tiles, attention in head groups, no autograd graph.

The parts, in the letters of docs/guide/words.md:

    heads      q, k, v of every tile, rotated, head-major                        n1 = norm(x)
    attention  o, lse of every head group; o takes the place of q
    rest       y = h + MLP(norm(h)), h = x + o Woᵀ

Backward runs them in reverse. `rest` is rebuilt without its last product, `heads` without attention: while o and lse
are kept no attention is computed twice. q, k and v of a block are dead once their gradients are known, which take
their places. Checked against the plain decoder in tests/engine/.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from longspan.attention.documents import Runs
from longspan.attention.schemes.base import Scheme
from longspan.engine import pointwise
from longspan.engine.gradients import Gradients
from longspan.engine.linear import Linear
from longspan.engine.store import Reader, Slot, Store
from longspan.model.decoder import Block, Norm
from longspan.rope.rotate import Angles


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all blocks share during one pass over one batch of T tokens.

    `q [h, T, d]`, `k` and `v [g, T, d]` and `lse [h, T]` are buffers that every block uses anew; `groups` are the
    key/value heads of each kernel call. `angles` hold cosine and sine `[T, pairs]` of every set that blocks turn by.
    """

    store: Store
    scheme: Scheme
    runs: Runs
    groups: tuple[slice, ...]
    angles: tuple[Angles, ...]
    q: Tensor
    k: Tensor
    v: Tensor
    lse: Tensor

    @property
    def heads_per_kv(self) -> int:
        """Query heads that share a key/value head."""
        return self.q.shape[0] // self.k.shape[0]

    @property
    def query_groups(self) -> tuple[slice, ...]:
        """The query heads of each group: those that its key/value heads serve."""
        n = self.heads_per_kv
        return tuple(slice(group.start * n, group.stop * n) for group in self.groups)


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """The slots of one block: its input x `[T, m]`, attention's output o `[h, T, d]` and its log-sum-exp `[h, T]`."""

    x: Slot
    o: Slot
    lse: Slot


class BlockPass:
    """A block's weights in the type of the tiles, for one pass over it."""

    def __init__(self, block: Block, work: Work, *, dtype: torch.dtype) -> None:
        self._block, self._work, self._store = block, work, work.store
        self._head_dim, self._window = block.head_dim, block.window
        self._cos, self._sin = work.angles[block.position_set]
        self.q, self.k, self.v, self.o = (Linear(module, dtype) for module in (block.q, block.k, block.v, block.o))
        self.gate, self.up, self.down = (Linear(module, dtype) for module in (block.gate, block.up, block.down))

    # -- forward --------------------------------------------------------------------------------------------------

    def attention(self, x: Iterable[list[Tensor]]) -> None:
        """Fill q, k and v from the tiles of x, then put o into the place of q and the log-sum-exp beside it."""
        for tile, (x_tile,) in zip(self._store.tiles, x, strict=True):
            self._heads(x_tile, tile)
        work = self._work
        for kv, query in zip(work.groups, work.query_groups, strict=True):
            o, lse = work.scheme.forward(work.q[query], work.k[kv], work.v[kv], runs=work.runs, window=self._window)
            work.q[query].copy_(o)
            work.lse[query].copy_(lse)
            del o, lse  # before the next call makes its own

    def save_attention(self, anchors: Anchors, index: int) -> None:
        """Keep one tile of what `attention` left."""
        tile = self._store.tiles[index]
        self._store.save(anchors.o, index, self._work.q[:, tile])
        self._store.save(anchors.lse, index, self._work.lse[:, tile])

    def rest(self, x: Float[Tensor, "t m"], o: Float[Tensor, "h t d"], *, out: Float[Tensor, "t m"]) -> None:
        """The block's output for one tile; `out` may be x."""
        h = self.o(pointwise.heads_to_tokens(o), add_to=x)
        n = self._norm(h, self._block.mlp_norm)
        z = pointwise.swiglu(self.gate(n), self.up(n))
        self.down(z, add_to=h, out=out)

    def _heads(self, x: Float[Tensor, "t m"], tile: slice) -> Tensor:
        """q, k and v of one tile into the buffers; the normalised tile comes back."""
        work, block = self._work, self._block
        n = self._norm(x, block.attention_norm)
        for project, norm, buffer in ((self.q, block.q_norm, work.q), (self.k, block.k_norm, work.k)):
            pointwise.rotate_into(
                project(n),
                self._cos[tile],
                self._sin[tile],
                buffer[:, tile],
                norm_weight=None if norm is None else norm.weight.detach(),
                epsilon=0.0 if norm is None else norm.epsilon,
            )
        pointwise.tokens_to_heads(self.v(n), work.v[:, tile])
        return n

    @staticmethod
    def _norm(x: Tensor, norm: Norm) -> Tensor:
        return pointwise.norm(x, norm.weight.detach(), norm.epsilon)

    # -- backward -------------------------------------------------------------------------------------------------

    def backward(self, gradient: Slot, do: Tensor, gradients: Gradients, readers: "Readers") -> None:
        """From the gradient of the output to that of the input, in place in the slot `gradient`.

        `do [h, T, d]` is a buffer. `readers` begin the copies of what comes next before it is needed.
        """
        store, work = self._store, self._work
        for index, (x, o, dy) in enumerate(readers.first):
            if index + 1 == len(store.tiles):
                readers.heads.start()
            dh = store.target(gradient, index)
            self._backward_rest(x, o, dy, do[:, store.tiles[index]], gradients, out=dh)
            store.commit(gradient, index)
            self._heads(x, store.tiles[index])
        for kv, query, (o, lse) in zip(work.groups, work.query_groups, readers.heads, strict=True):
            if kv is work.groups[-1]:
                readers.second.start()
            dq, dk, dv = work.scheme.backward(
                do[query], work.q[query], work.k[kv], work.v[kv], o, lse, runs=work.runs, window=self._window
            )
            work.q[query].copy_(dq)
            work.k[kv].copy_(dk)
            work.v[kv].copy_(dv)
            del dq, dk, dv
        for index, (x, dh) in enumerate(readers.second):
            dx = store.target(gradient, index)
            self._backward_heads(x, dh, store.tiles[index], gradients, out=dx)
            store.commit(gradient, index)
            if index == len(store.tiles) // 2 and readers.following is not None:
                readers.following.start()  # its first tile has its gradient now

    def _backward_rest(
        self, x: Tensor, o: Tensor, dy: Tensor, do: Tensor, gradients: Gradients, *, out: Tensor
    ) -> None:
        """One tile through the MLP and Wo: the gradient of h into `out`, that of o into `do`."""
        norm = self._block.mlp_norm
        o = pointwise.heads_to_tokens(o)
        h = self.o(o, add_to=x)
        n = self._norm(h, norm)
        gate, up, dz = self.gate(n), self.up(n), self.down.backward_input(dy)
        pointwise.swiglu_backward_(gate, up, dz)  # now their gradients, and z in the place of its own
        self.down.backward_weights(dy, dz, gradients)
        del dz
        dn = self.gate.backward(gate, n, gradients)
        del gate
        dn = self.up.backward(up, n, gradients, add_to=dn)
        del up, n
        dh = pointwise.norm_backward(
            dn, h, norm.weight.detach(), norm.epsilon, residual=dy, dweight=gradients.of(norm.weight), out=out
        )
        pointwise.tokens_to_heads(self.o.backward(dh, o, gradients), do)

    def _backward_heads(self, x: Tensor, dh: Tensor, tile: slice, gradients: Gradients, *, out: Tensor) -> None:
        """One tile through rotation, projections and the first norm: the gradient of x into `out`."""
        work, block, norm = self._work, self._block, self._block.attention_norm
        n = self._norm(x, norm)
        dn = self.v.backward(pointwise.heads_to_tokens(work.v[:, tile]), n, gradients)
        for project, head_norm, buffer in ((self.q, block.q_norm, work.q), (self.k, block.k_norm, work.k)):
            dy = pointwise.rotate_back(buffer[:, tile], self._cos[tile], self._sin[tile])
            if head_norm is not None:
                dy = self._backward_head_norm(dy, project(n), head_norm, gradients)
            dn = project.backward(dy, n, gradients, add_to=dn)
        pointwise.norm_backward(
            dn, x, norm.weight.detach(), norm.epsilon, residual=dh, dweight=gradients.of(norm.weight), out=out
        )

    def _backward_head_norm(self, dy: Tensor, before: Tensor, norm: Norm, gradients: Gradients) -> Tensor:
        d = self._head_dim
        dx = pointwise.norm_backward(
            dy.view(-1, d),
            before.view(-1, d),
            norm.weight.detach(),
            norm.epsilon,
            residual=None,
            dweight=gradients.of(norm.weight),
            out=None,
        )
        return dx.view_as(dy)


@dataclass(frozen=True, kw_only=True)
class Readers:
    """What a block's backward pass reads, each begun before it is needed: x, o and the gradient by tile; o and lse by
    head group; x and the gradient by tile; and the first tiles of the block below.
    """

    first: Reader
    heads: Reader
    second: Reader
    following: Reader | None
