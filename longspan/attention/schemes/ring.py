"""Ring attention: keys and values travel from rank to rank, and every rank takes what its queries may see of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from longspan.attention.documents import Runs
from longspan.attention.functional import wide
from longspan.attention.layout import Pieces, hiding, local_runs, rectangles, tokens_of, zigzag
from longspan.attention.schemes.base import Scheme
from longspan.attention.schemes.local import ONE_DEVICE, Local
from longspan.parallel.dist import ALONE, Axis
from longspan.parallel.exchange import Pending, ring_step
from longspan.utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Ring(Scheme):
    """Tokens in zigzag over the ranks of `ring`: in each step each rank has the same causal work, without a mask.

    Takes all documents and head counts; refuses windows (`attention.window`). The next keys are on their way while a
    kernel works. Partial results merge in float32; gradients of keys travel in float32 and make one more hop home.
    Source: arXiv:2310.01889; the balance is that of zhuzilin/ring-flash-attention.
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
        """Own tokens first, then those of the rank before, and so on around."""
        _refuse(window, runs)
        own = self._pieces(0, runs)
        kv = torch.stack((k, v))
        arriving = self._send(kv, 0, runs)
        if own:
            o, lse = self.local.forward(q, k, v, runs=local_runs(own, runs), window=None)
        else:
            o, lse = q.clone(), q.new_empty(q.shape[:2], dtype=wide(q))
        for step in range(1, self.ranks):
            kv = arriving.wait()
            arriving = self._send(kv, step, runs)
            for rectangle in rectangles(own, self._pieces(step, runs), runs):
                o = o.to(lse.dtype)
                mine, theirs = rectangle.queries, rectangle.keys
                part, part_lse = self.local.full(q[:, mine], kv[0][:, theirs], kv[1][:, theirs])
                self.local.merge(o[:, mine], lse[:, mine], part, part_lse)
                del part, part_lse  # before the next call makes its own
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
        """The same steps; the gradients of keys follow their keys one step behind."""
        _refuse(window, runs)
        own = self._pieces(0, runs)
        kv = torch.stack((k, v))
        arriving = self._send(kv, 0, runs)
        dq, dkv = torch.zeros_like(q, dtype=wide(q)), torch.zeros_like(kv, dtype=wide(kv))
        if own:
            shares = self.local.backward(do, q, k, v, o, lse, runs=local_runs(own, runs), window=None)
            dq += shares[0]
            dkv[0], dkv[1] = shares[1], shares[2]
            del shares  # before the next call makes its own
        for step in range(1, self.ranks):
            kv = arriving.wait()
            arriving = self._send(kv, step, runs)
            following = self._send_on(dkv, step, runs)
            shared = torch.zeros_like(kv, dtype=wide(kv))
            for rectangle in rectangles(own, self._pieces(step, runs), runs):
                mine, theirs = rectangle.queries, rectangle.keys
                kept = [x[:, mine] for x in (o, lse)]
                shares = self.local.full_backward(do[:, mine], q[:, mine], kv[0][:, theirs], kv[1][:, theirs], *kept)
                for total, part in zip((dq[:, mine], shared[0][:, theirs], shared[1][:, theirs]), shares, strict=True):
                    total += part
                del shares, part
            dkv = following.wait().add_(shared)
        dk, dv = self._send_on(dkv, self.ranks, runs).wait()
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)

    def _pieces(self, step: int, runs: Runs) -> Pieces:
        """Whose keys are here in a step: the tokens of the rank so many places before."""
        return self.layout(runs[-1][1], (self.rank - step) % self.ranks)

    def _send(self, kv: Tensor, step: int, runs: Runs) -> Pending[Tensor]:
        """Begin to send on the keys of a step and to receive those of the next; those of the last stay."""
        if step + 1 == self.ranks:
            return Pending(self.ring, "ring of keys", kv)
        shape = (*kv.shape[:2], tokens_of(self._pieces(step + 1, runs)), kv.shape[3])
        return ring_step(kv, self.ring, shape=shape, operation=f"ring of keys, step {step}")

    def _send_on(self, dkv: Tensor, step: int, runs: Runs) -> Pending[Tensor]:
        """Begin to send on the gradients of the keys of the step before and to receive those of this one."""
        shape = (*dkv.shape[:2], tokens_of(self._pieces(step, runs)), dkv.shape[3])
        return ring_step(dkv, self.ring, shape=shape, operation=f"ring of gradients, step {step}")


def _refuse(window: int | None, runs: Runs) -> None:
    if hiding(window, runs) is not None:
        raise ConfigError(
            "attention.window",
            f"the ring does not do attention with a window of {window} tokens",
            fix="take ulysses or gather, or grid with gather across",
        )
