"""What one call of each scheme sends from a rank, bytes and messages: for plans, and to hold schedules to. No torch.

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
    """Bytes and messages that a rank sends. In a collective a message goes to each other rank of the axis."""

    forward_bytes: int
    backward_bytes: int
    forward_messages: int
    backward_messages: int

    def __add__(self, other: "Sent") -> "Sent":
        """Both, one after the other."""
        return Sent(
            forward_bytes=self.forward_bytes + other.forward_bytes,
            backward_bytes=self.backward_bytes + other.backward_bytes,
            forward_messages=self.forward_messages + other.forward_messages,
            backward_messages=self.backward_messages + other.backward_messages,
        )


def ring(call: Call, *, ranks: int) -> Sent:
    """Keys and values past all other ranks; in backward their gradients one hop more. All go to the next rank."""
    around = call.kv_bytes * (ranks - 1)
    hops = ranks if ranks > 1 else 0
    return Sent(
        forward_bytes=around,
        backward_bytes=around + call.kv_sum_bytes * hops,
        forward_messages=ranks - 1,
        backward_messages=ranks - 1 + hops,
    )


def gather(call: Call, *, ranks: int) -> Sent:
    """Keys and values to all other ranks; in backward a share of their gradients from each."""
    others = ranks - 1
    return Sent(
        forward_bytes=call.kv_bytes * others,
        backward_bytes=(call.kv_bytes + call.kv_sum_bytes) * others,
        forward_messages=2 * others,
        backward_messages=4 * others,
    )


def ulysses(call: Call, *, ranks: int, stages: int = 1, kv_stages: int = 1) -> Sent:
    """A rank's heads of q, k, v there and o, lse back; in backward do, q, o, lse, k, v there and dq, dk, dv back.

    Query heads go in so many `stages`, key heads in `kv_stages`: fewer where several stages meet the same.
    """
    kv_heads = math.lcm(call.kv_heads, ranks)  # with copies
    summed = stages > kv_stages or kv_heads > call.kv_heads
    query = call.heads // ranks * call.head_dim * call.element_bytes
    lse = call.heads // ranks * call.sum_bytes
    key = kv_heads // ranks * call.head_dim * call.element_bytes
    gradient = kv_heads // ranks * call.head_dim * (call.sum_bytes if summed else call.element_bytes)
    others = ranks - 1
    return Sent(
        forward_bytes=others * call.tokens * (2 * query + 2 * key + lse),
        backward_bytes=others * call.tokens * (4 * query + 2 * key + 2 * gradient + lse),
        forward_messages=others * (3 * stages + 2 * kv_stages),
        backward_messages=others * (5 * stages + 4 * kv_stages),
    )


def grid(call: Call, *, inside: int, across: int, gathered: bool = False) -> Sent:
    """Ulysses inside, then a ring or a gather across with all tokens of a node and the heads of one rank."""
    kv_heads = math.lcm(call.kv_heads, inside) // inside
    outer = replace(call, heads=call.heads // inside, kv_heads=kv_heads, tokens=call.tokens * inside)
    return ulysses(call, ranks=inside) + (gather if gathered else ring)(outer, ranks=across)
