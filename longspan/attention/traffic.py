"""What one call of each scheme sends from a rank, in bytes: for plans, and to hold schedules to. No torch.

Ranks hold equally many tokens. Shapes as the scheme's own: the heads of one call, `tokens` of this rank.
"""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a scheme. Sums travel in at least `sum_bytes` a number."""

    heads: int
    kv_heads: int
    head_dim: int
    tokens: int
    element_bytes: int = 2
    sum_bytes: int = 4

    @property
    def kv_bytes(self) -> int:
        """Keys and values of this rank's tokens."""
        return 2 * self.kv_heads * self.head_dim * self.tokens * self.element_bytes

    @property
    def kv_sum_bytes(self) -> int:
        """Their gradients while they add up."""
        return 2 * self.kv_heads * self.head_dim * self.tokens * self.sum_bytes


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Bytes that a rank sends."""

    forward_bytes: int
    backward_bytes: int


def ring(call: Call, *, ranks: int) -> Sent:
    """Keys and values past all other ranks; in backward their gradients one hop more."""
    around = call.kv_bytes * (ranks - 1)
    home = call.kv_sum_bytes * ranks if ranks > 1 else 0
    return Sent(forward_bytes=around, backward_bytes=around + home)


def gather(call: Call, *, ranks: int) -> Sent:
    """Keys and values to all other ranks; in backward a share of their gradients from each."""
    around = call.kv_bytes * (ranks - 1)
    return Sent(forward_bytes=around, backward_bytes=around + call.kv_sum_bytes * (ranks - 1))


def ulysses(call: Call, *, ranks: int, staged: bool = False) -> Sent:
    """A rank's heads of q, k, v there and o, lse back; in backward do, q, o, lse, k, v there and dq, dk, dv back.

    `staged`: query heads meet the same key heads in several stages.
    """
    kv_heads = math.lcm(call.kv_heads, ranks)  # with copies
    summed = staged or kv_heads > call.kv_heads
    query = call.heads // ranks * call.head_dim * call.element_bytes
    lse = call.heads // ranks * call.sum_bytes
    key = kv_heads // ranks * call.head_dim * call.element_bytes
    gradient = kv_heads // ranks * call.head_dim * (call.sum_bytes if summed else call.element_bytes)
    others = (ranks - 1) * call.tokens
    return Sent(
        forward_bytes=others * (2 * query + 2 * key + lse),
        backward_bytes=others * (4 * query + 2 * key + 2 * gradient + lse),
    )


def grid(call: Call, *, inside: int, across: int, gathered: bool = False) -> Sent:
    """Ulysses inside, then a ring or a gather across with all tokens of a node and the heads of one rank."""
    kv_heads = math.lcm(call.kv_heads, inside) // inside
    outer = replace(call, heads=call.heads // inside, kv_heads=kv_heads, tokens=call.tokens * inside)
    first, second = ulysses(call, ranks=inside), (gather if gathered else ring)(outer, ranks=across)
    return Sent(
        forward_bytes=first.forward_bytes + second.forward_bytes,
        backward_bytes=first.backward_bytes + second.backward_bytes,
    )
